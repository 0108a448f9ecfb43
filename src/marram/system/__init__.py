"""What the operating system gives: files that outlive a power cut, files that one process holds, tied children, ports.

Below everything but the schema, so that each of these is written once. It knows none of Marram's nouns, and raises
`OSError`: what a fault means to a person is said by whoever asked.
"""
