"""Stream manager is not part of Marram: importing it fails at once, naming what serves instead."""

raise ImportError(
    "greengrasssdk.stream_manager is not part of Marram: publish with client('iot-data'), which keeps messages durably "
    "on the device and delivers each once"
)
