"""Where one inference runs: the pure decision, from live measurements. No I/O, no clock, no threads here."""
