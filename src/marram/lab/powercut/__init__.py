"""Power cuts, rehearsed: everything a program asked of its disk is recorded, and every moment of it replayed as a cut.

`recording` runs a program under strace and keeps each write, truncation, creation, rename, link, removal and fsync
under one folder, in order. `disk` knows what a disk may hold after a cut at any of these moments: what was synced is
there; what was not may be there, or not, or in part, in any order. Whoever rehearses brings the check: does the program
find its way from each of these disks?
"""
