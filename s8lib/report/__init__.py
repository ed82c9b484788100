"""What a run looks like: tables, pictures and the video, made from what the run left on disk."""
