"""A network camera: RTSP over TCP (RFC 2326) with JPEG in RTP (RFC 2435), as much of both as a player asks for."""

from __future__ import annotations

import io
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image as Pillow

SIZE = (64, 48)  # width, height
FRAME_S = 0.02
PACKET_BYTES = 1200


class RtspCamera:
    """Shows one grey `level` until told another. `unplug` drops its viewers, `plug_in` takes them again."""

    def __init__(self) -> None:
        self.level = 60
        self.played = 0
        self._closed = threading.Event()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self.url = f"rtsp://user:secret@127.0.0.1:{self._port}/live"
        self.plug_in()

    def plug_in(self) -> None:
        self._unplugged = threading.Event()
        self._server = socket.create_server(("127.0.0.1", self._port))
        self._viewers: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def unplug(self) -> None:
        self._unplugged.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._threads[0].join(30)
        for viewer in self._viewers:
            viewer.close()
        for thread in self._threads:
            thread.join(30)

    def _accept(self) -> None:
        while True:
            try:
                viewer, _ = self._server.accept()
            except OSError:
                return
            viewer.settimeout(FRAME_S)
            self._viewers.append(viewer)
            self._threads.append(threading.Thread(target=self._serve, args=(viewer,)))
            self._threads[-1].start()

    def _serve(self, viewer: socket.socket) -> None:
        """Answer requests; between them, once it plays, a picture every `FRAME_S`."""
        asked, playing, sequence = b"", False, 0
        try:
            while not self._unplugged.is_set():
                try:
                    came = viewer.recv(4096)
                    if not came:
                        return
                    asked += came
                except TimeoutError:
                    if playing:
                        sequence = self._send_picture(viewer, sequence)
                while b"\r\n\r\n" in asked and not asked.startswith(b"$"):
                    request, _, asked = asked.partition(b"\r\n\r\n")
                    viewer.sendall(self._answer(request.decode()))
                    playing = playing or request.startswith(b"PLAY")
                if asked.startswith(b"$"):  # the viewer's own reports (RTCP), which no camera needs
                    asked = b""
        except OSError:
            pass
        finally:
            viewer.close()

    def _answer(self, request: str) -> bytes:
        lines = request.split("\r\n")
        verb = lines[0].split()[0]
        number = next(line.split(":")[1].strip() for line in lines if line.lower().startswith("cseq"))
        head, body = [f"CSeq: {number}"], ""
        if verb == "OPTIONS":
            head.append("Public: DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER")
        elif verb == "DESCRIBE":
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track1\r\n"
            )
            head += ["Content-Type: application/sdp", f"Content-Base: rtsp://127.0.0.1:{self._port}/live/"]
        elif verb == "SETUP":
            head += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 7"]
        elif verb == "PLAY":
            self.played += 1
            head.append("Session: 7")
        head.append(f"Content-Length: {len(body)}")
        return ("RTSP/1.0 200 OK\r\n" + "\r\n".join(head) + "\r\n\r\n" + body).encode()

    def _send_picture(self, viewer: socket.socket, sequence: int) -> int:
        tables, scan = _jpeg_parts(self.level)
        time_90khz = int(sequence * FRAME_S * 90_000) & 0xFFFFFFFF
        for offset in range(0, len(scan), PACKET_BYTES):
            part = scan[offset : offset + PACKET_BYTES]
            last = offset + len(part) == len(scan)
            # Type 1 is 4:2:0; Q 255 says that the first packet brings the quantisation tables.
            jpeg = struct.pack(">I", offset) + bytes([1, 255, SIZE[0] // 8, SIZE[1] // 8])
            if offset == 0:
                jpeg += struct.pack(">BBH", 0, 0, len(tables)) + tables
            rtp = struct.pack(">BBHII", 0x80, 26 | (0x80 if last else 0), sequence & 0xFFFF, time_90khz, 1)
            packet = rtp + jpeg + part
            viewer.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
            sequence += 1
        return sequence


def _jpeg_parts(level: int) -> tuple[bytes, bytes]:
    """A picture's quantisation tables and its entropy-coded scan."""
    file = io.BytesIO()
    Pillow.fromarray(np.full((SIZE[1], SIZE[0], 3), level, np.uint8)).save(file, "JPEG", quality=90, subsampling=2)
    jpeg, at, tables = file.getvalue(), 2, b""
    while True:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segment = jpeg[at + 4 : at + 2 + length]
        if marker == 0xDB:
            tables += b"".join(segment[i + 1 : i + 65] for i in range(0, len(segment), 65))
        at += 2 + length
        if marker == 0xDA:
            return tables, jpeg[at:-2]


@pytest.fixture
def rtsp_camera() -> Iterator[RtspCamera]:
    camera = RtspCamera()
    yield camera
    camera.unplug()
