from s8lib.cli import main

raise SystemExit(main())
