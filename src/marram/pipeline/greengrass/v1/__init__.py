"""The folder that a `function` step puts on `sys.path`: it holds `greengrasssdk` and nothing else."""
