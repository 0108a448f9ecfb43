"""Code written for AWS IoT Greengrass V1 runs unmodified in a worker: the way out (`station`), shadows, the context.

`v1/` holds the module `greengrasssdk` itself. It is put on `sys.path` only in a process that runs a `function`
step, and never installed: elsewhere `import greengrasssdk` must go on meaning what it meant.
"""
