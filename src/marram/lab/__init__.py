"""Rehearsal: shaped links, slowed devices, fault injection, the demo. Real processes and sockets, distance made.

| module | what |
|---|---|
| `traces` | a link over time: made in the shape of Wi-Fi, LTE, 3G, or read from recordings (mahimahi, sabre) |
| `shaper`, `link` | a TCP proxy that carries as a trace says, can be cut, healed, reset; in a loop, or as a process |
| `faults` | what goes wrong and when, as a script |
| `children` | processes that end with their parent |
| `simulate` | placement on a virtual clock, for policies: hours of link in seconds |
| `ledger` | was everything delivered exactly once: counted at both ends |
| `stage` | a cloud and devices driven by commands, for examples and end-to-end tests |
| `demo*`, `photos` | `marram demo` |

A slower device: `MARRAM_SLOWDOWN=8` in the environment of `marram edge run` (or `marram run`) stretches each edge
inference to eight times the CPU time it took, by sleeping. It uses no more CPU than before, so that several fit on one
machine.
"""
