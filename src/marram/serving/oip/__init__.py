"""The Open Inference Protocol v2 (KServe, Triton), REST and gRPC, over anything that is `serving.contract.Answering`.

`tensors.py` what tensors mean, `exchange.py` one inference as both ways of travelling have it, `inference.py` what is
answered, `rest.py` (with `rest_body.py`) and `rpc.py` the two ways, `server.py` both on their ports, `messages.py`
gRPC's messages.
"""
