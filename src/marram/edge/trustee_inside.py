"""Where a device's keys and signatures are handled: in a short-lived process, or a thread where many devices share one.

`Answers` knows the questions of `edge.trustee.Trustee`; the two ways to ask them differ in nothing else. It loads X.509
and TUF, so an agent never imports it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marram.edge.answering import Fetch, serve
from marram.edge.identity import IdentityFiles
from marram.edge.renewing import Renewing
from marram.edge.trustee import Metadata
from marram.edge.trustee_child import Questions
from marram.edge.trustee_secrets import secrets
from marram.edge.trustee_verify import verify
from marram.edge.vault import Vault
from marram.schema.errors import Invalid, Retryable
from marram.trust.clock import Sources


class Answers:
    """Over one device's folder. Blocking; one question at a time."""

    def __init__(self, folder: Path, time_sources: Sources | None = None) -> None:
        self._folder = folder
        self._time_sources = time_sources
        self._renewing = Renewing(IdentityFiles(folder / "identity"), Vault(folder).carry)
        self._known: dict[str, Callable[[dict[str, Any], Fetch], dict[str, Any]]] = {
            "verify": self._verify,
            "renewal": self._renewal,
            "renewed": self._renewed,
            "renew_at": self._renew_at,
            "standing": self._standing,
            "secrets": self._secrets,
        }

    def answer(self, question: dict[str, Any], fetch: Fetch) -> dict[str, Any]:
        """The answer; `fetch` brings signed metadata. Raises MarramError."""
        try:
            work = self._known[question["t"]]
        except KeyError as error:
            raise Invalid(f"no question of ours: {question.get('t')!r:.40}") from error
        return work(question, fetch)

    def _verify(self, question: dict[str, Any], fetch: Fetch) -> dict[str, Any]:
        return verify(self._folder, question, fetch, self._time_sources)

    def _renewal(self, question: dict[str, Any], fetch: Fetch) -> dict[str, Any]:
        return {"request": self._renewing.request()}

    def _renewed(self, question: dict[str, Any], fetch: Fetch) -> dict[str, Any]:
        self._renewing.accept(question["answer"])
        return {}

    def _renew_at(self, question: dict[str, Any], fetch: Fetch) -> dict[str, Any]:
        self._renewing.over_https(question["url"])
        return {}

    def _standing(self, question: dict[str, Any], fetch: Fetch) -> dict[str, Any]:
        self._renewing.standing(question["url"])
        return {}

    def _secrets(self, question: dict[str, Any], fetch: Fetch) -> dict[str, Any]:
        return secrets(self._folder, question, fetch)


class InsideTrustee(Questions):
    """In a thread of this process."""

    def __init__(self, folder: Path, time_sources: Sources | None = None) -> None:
        self._answers = Answers(folder, time_sources)
        self._turn = threading.Lock()

    async def ask(self, question: dict[str, Any], metadata: Metadata) -> dict[str, Any]:
        """See `Questions.ask`."""
        loop = asyncio.get_running_loop()
        brought: set[concurrent.futures.Future[bytes | None]] = set()
        given_up = threading.Event()

        async def bring(name: str, most_bytes: int) -> bytes | None:
            return await metadata(name, most_bytes)

        def fetch(name: str, most_bytes: int) -> bytes | None:
            if given_up.is_set():
                raise Retryable("nobody wants to know any more")
            bringing = asyncio.run_coroutine_threadsafe(bring(name, most_bytes), loop)
            brought.add(bringing)
            if given_up.is_set():  # between the look above and the line before: nobody else will end it
                bringing.cancel()
            try:
                return bringing.result()
            except concurrent.futures.CancelledError as error:
                raise Retryable("nobody wants to know any more") from error

        def work() -> dict[str, Any]:
            with self._turn:
                return self._answers.answer(question, fetch)

        try:
            return await asyncio.to_thread(work)
        except asyncio.CancelledError:
            # The thread ends too, or it would outlive the loop it asks.
            given_up.set()
            for each in brought:
                each.cancel()
            raise


if __name__ == "__main__":
    serve(lambda folder, question, fetch: Answers(folder).answer(question, fetch))
