"""Sampling: which comments of a fast stream are shown, and which rate classes get them. Sans-I/O.

Every comment is stamped with a mask when it is admitted, so acknowledgement, delivery, resume and
history agree, and all viewers see the same choice. Shown is a keyed hash of the comment's id
against the ratio; the classes of 50, 20 and 5 a second are nested token buckets over what is shown.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import Final

from uproar.config import Sampling
from uproar.events import MASK_ALL, RATE_5, RATE_20, RATE_50, SHOWN

BURST_S: Final = 0.5  # a bucket holds so many seconds of its rate


class Meter:
    """Comments per second over the last second, by buckets of 100 ms."""

    def __init__(self) -> None:
        self._buckets: deque[tuple[int, int]] = deque()
        self._count = 0

    def add(self, now: int) -> float:
        """Count one at `now` (ms); return the rate."""
        slot = now // 100
        if self._buckets and self._buckets[-1][0] >= slot:
            self._buckets[-1] = (self._buckets[-1][0], self._buckets[-1][1] + 1)
        else:
            self._buckets.append((slot, 1))
        self._count += 1
        return self.rate(now)

    def rate(self, now: int) -> float:
        """Return the comments of the second before `now`."""
        oldest = now // 100 - 10
        while self._buckets and self._buckets[0][0] < oldest:
            self._count -= self._buckets.popleft()[1]
        return float(self._count)


class Sampler:
    """The choice for one stream. `ratio` is the log's: it changes when SAMPLING is admitted."""

    def __init__(self, settings: Sampling, ratio: float, key: bytes) -> None:
        self.ratio = ratio
        self._settings = settings
        self._key = key
        self._meter = Meter()
        self._calm_since: int | None = None
        self._buckets = [[rate * BURST_S, 0, rate] for rate in (50, 20, 5)]

    def offered(self, now: int) -> float | None:
        """Count one comment offered; return the new ratio when it has to change."""
        rate = self._meter.add(now)
        return self._changed(rate, now)

    def idle(self, now: int) -> float | None:
        """Look at the clock alone; return the new ratio when it has to change."""
        return self._changed(self._meter.rate(now), now) if self.ratio < 1 else None

    @property
    def rate(self) -> float:
        """Comments a second, as last measured."""
        return float(self._meter._count)

    def _changed(self, rate: float, now: int) -> float | None:
        settings = self._settings
        if self.ratio >= 1:
            if settings.threshold and rate > settings.threshold:
                self._calm_since = None
                return settings.ratio
            return None
        if rate > settings.threshold * settings.release:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= settings.calm_s * 1000:
            return 1.0
        return None

    def mask(self, comment_id: bytes, now: int, *, privileged: bool) -> int:
        """Return the mask of one comment."""
        if privileged:
            return MASK_ALL
        if self.ratio < 1:
            digest = blake2b(comment_id, key=self._key, digest_size=4).digest()
            if int.from_bytes(digest, "big") >= self.ratio * (1 << 32):
                return 0
        mask = SHOWN
        for bit, bucket in zip((RATE_50, RATE_20, RATE_5), self._buckets, strict=True):
            tokens, last, rate = bucket
            tokens = min(rate * BURST_S, tokens + (now - last) * rate / 1000) if last else tokens
            if tokens < 1:
                bucket[0], bucket[1] = tokens, now
                break  # nested: what a wider class does not get, the narrower ones do not either
            bucket[0], bucket[1] = tokens - 1, now
            mask |= bit
        return mask
