"""The device: one agent supervising one worker process per app."""
