"""The load that benchmarks/serving.py puts on a server, as Locust runs it: texts of 128 tokens.

Replies are counted by what they are: "answered" (200), "refused" (429, 503), "late" (504), "failed".

LOAD_TEXTS      texts a request
LOAD_RATE       requests a second and client, due at random times whatever the server answers (a client that
                waits for an answer makes up for it); 0: the next one as soon as one is answered
LOAD_ADAPTERS   adapters, of which each request names one by chance
"""

import os
import random
import time

from locust import FastHttpUser, task

TEXTS, RATE = int(os.environ["LOAD_TEXTS"]), float(os.environ["LOAD_RATE"])
ADAPTERS = [f"a{number}" for number in range(int(os.environ["LOAD_ADAPTERS"]))]
KINDS = {200: "answered", 429: "refused", 503: "refused", 504: "late"}
WORDS = ("film", "story", "music", "boring", "fine", "actor", "scene", "plot", "great", "dull")
N_WORDS = 126  # one token each, and two special ones


class Client(FastHttpUser):
    """One client with one request at a time."""

    connection_timeout = network_timeout = 30.0

    def on_start(self) -> None:
        """Begin at a time of one's own, not with all others."""
        self.due = time.monotonic()
        time.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Seconds until the next request is due; between two that are due they are exponential."""
        if not RATE:
            return 0.0
        self.due += random.expovariate(RATE)
        return max(0.0, self.due - time.monotonic())

    @task
    def classify(self) -> None:
        """Ask for one adapter's predictions of some texts."""
        texts = [" ".join(random.choices(WORDS, k=N_WORDS)) for _ in range(TEXTS)]
        body = {"model": random.choice(ADAPTERS), "input": texts}
        with self.client.post("/classify", json=body, catch_response=True) as response:
            response.request_meta["name"] = KINDS.get(response.status_code, "failed")
            if response.status_code in KINDS:
                response.success()
            else:
                response.failure(f"status {response.status_code}")
