"""The bus: an embedded NATS server, a supervised client, subjects and codec, the device's outbox.

Only this package imports `nats`. NATS carries and never stores: whatever must not be lost waits in the outbox until
the cloud's database has it.
"""
