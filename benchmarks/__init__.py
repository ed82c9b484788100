"""What the project's figures are measured with; run from a checkout, not part of the installed package."""
