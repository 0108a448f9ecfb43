"""How far a placement policy is from one that knows the future: streams, the best schedule in hindsight, baselines.

`stream` makes what happens (link, service times), `play` lets any `placement.contract.Policy` live through it,
`schedule` is the best that could have been done, `baselines` are the policies of the literature behind the same seam,
`compare` puts them side by side. All on a virtual clock, all repeatable; nothing here knows a policy's inside.

`live` has the shipped policy run in real processes instead (`device`, with a model of `work`), and `record` makes that
run a stream again, for the same judgement.
"""
