"""Shard sets as jobs: made at once or in shares, gone on with after a kill, verified and repaired.

Whatever makes shards (cropping, encoding, sampling) says what they are and how some of them are
made; the rest is here.
"""

import itertools
import logging
import math
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from selfdistill.data.shard_writer import finalize, write_header, write_manifest
from selfdistill.data.shards import (
    HEADER,
    MANIFEST,
    Shards,
    entry_of,
    length_fault,
    missing_shards,
    read_checked,
    read_header,
    shard_name,
    summary_name,
)
from selfdistill.files import DamagedError, atomic_path, check_space, job, sha256_of
from selfdistill.progress import progress

if TYPE_CHECKING:
    from selfdistill.distributed import World

logger = logging.getLogger(__name__)

_NAMED = 10  # files in a message
_BYTES_BESIDE = 512  # of a record, beside its data, in shard, sidecar and manifest; generous


class Fault(NamedTuple):
    """What is wrong with a file of a shard set.

    Attributes:
        file: Its name.
        reason: What is wrong with it.
        shard: Number of the shard that it belongs to; None for the manifest and the header.
    """

    file: str
    reason: str
    shard: int | None


@dataclass(frozen=True)
class ShardJob:
    """A shard set that is to be made.

    Attributes:
        name: Fingerprint of all that determines the shards.
        what: What they hold, in the plural, for messages.
        sizes: Records of each shard, at most.
        shape: Shape of one record's tensor.
        dtype: NumPy name of the element type.
        make: Makes the shards with the given numbers in a directory, each whole or not at all; what
            a shard becomes depends on its number alone.
        class_names: Names in the order of the labels.
        about: Provenance for the header, as JSON values.
    """

    name: str
    what: str
    sizes: Sequence[int] = field(repr=False)
    shape: Sequence[int]
    dtype: str
    make: Callable[[Path, Sequence[int]], object] = field(repr=False)
    class_names: Sequence[str] = field(repr=False, default=())
    about: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self.sizes)

    def build(self, scratch: Path, place: Path | None = None) -> Shards:
        """Make the shards that are missing in scratch, then the manifest.

        Args:
            scratch: Parent of the directory in which they are made.
            place: Where the set is published; if it is what this job makes, nothing is made.

        Returns:
            The finished set, in its place or still in scratch.

        Raises:
            ValueError: If another run is at work in `scratch`, or the disk is too small.
            DamagedError: If the published set is damaged.
        """
        if place is not None and self._is_published(place):
            logger.info("%s holds what would be made", place)
            return Shards.open(place)
        with job(scratch, self.name) as directory:
            if missing := missing_shards(directory, self.num_shards):
                self._check_space(directory, missing)
                self.make(directory, missing)
            return self._finish(directory)

    def build_share(
        self, scratch: Path, host: int, num_hosts: int, place: Path | None = None
    ) -> None:
        """Make one host's share of the shards; `build` finishes what all hosts made.

        Args:
            scratch: As for `build`, on a file system that all hosts see.
            host: Number of this host, from 0.
            num_hosts: Number of hosts.
            place: As for `build`.

        Raises:
            ValueError: If a run of the whole job is at work in `scratch`, or the disk is too small
                for the shares of all hosts.
        """
        if place is not None and self._is_published(place):
            logger.info("%s holds what would be made", place)
            return
        first, stop = (i * self.num_shards // num_hosts for i in (host, host + 1))
        with job(scratch, self.name, shared=True) as directory:
            missing = missing_shards(directory, self.num_shards)
            if mine := [shard for shard in missing if first <= shard < stop]:
                self._check_space(directory, missing)
                self.make(directory, mine)
            left = len(missing_shards(directory, self.num_shards))
        logger.info(
            "Host %d of %d: its %d shards are made. %s",
            host,
            num_hosts,
            stop - first,
            f"{left} of {self.num_shards} are left to other hosts"
            if left
            else "All are: the run without a share makes the manifest and publishes them",
        )

    def repair(self, place: Path, scratch: Path, num_threads: int) -> Shards:
        """Make what is damaged of a published set anew, and only that.

        A shard that comes out with another sha256 than was noted is not put into place, and what
        the header says of the set's origin stays as it was.

        Args:
            place: The set's directory.
            scratch: Where the shards are made again.
            num_threads: How many files are read at a time.

        Returns:
            The whole set, in its place.

        Raises:
            FileNotFoundError: If there is no shard set at `place`.
            ValueError: If a shard comes out otherwise than it was, because inputs, versions or the
                kind of device differ, or the set has another number of shards than this job.
        """
        with job(scratch, f"{self.name}.repair") as directory:  # what it makes is not trusted yet
            for leftover in place.glob(".*.tmp"):
                leftover.unlink()  # of a repair that was killed
            try:
                if faults := find_faults(place, num_threads):
                    self._mend(place, directory, faults)
            finally:
                shutil.rmtree(directory)
        return Shards.open(place)

    def _mend(self, place: Path, directory: Path, faults: Sequence[Fault]) -> None:
        """Make what is damaged anew in a directory, and put it into place if it is what it was."""
        header = _header(place)
        entries = _entries(place, header)
        if len(entries) > self.num_shards or (header and len(entries) < self.num_shards):
            raise ValueError(
                f"{place}: holds {len(entries)} shards, but inputs and parameters give "
                f"{self.num_shards}; delete it and run the stage that makes it"
            )
        wanted = {fault.shard for fault in faults if fault.shard is not None}
        wanted |= set(range(len(entries), self.num_shards))
        proof: set[int] = set()
        known = {shard: entry["num_records"] for shard, entry in entries.items() if entry}
        if header is None and not any(known.get(shard) for shard in wanted):
            # One with records has to show that this is the job that made the set.
            proof = {max(known, key=known.__getitem__, default=0)}
        if again := sorted(wanted | proof):
            self._check_space(directory, again)
            self.make(directory, again)
        for shard in again:
            if fault := _difference(directory, shard, entries.get(shard)):
                raise ValueError(
                    f"{place / shard_name(shard)}: {fault}; delete {place} and run its stage"
                )
        for shard in wanted:
            for file in (shard_name(shard), summary_name(shard)):
                _put(directory / file, place / file)
        if header is None:
            self._finish(place)
        elif any(fault.shard is None for fault in faults):
            write_manifest(place, self.num_shards)
            write_header(place, header)

    def _is_published(self, place: Path) -> bool:
        """Say whether a whole set of this job is in its place.

        Raises:
            DamagedError: If the header there is damaged.
        """
        return (place / HEADER).is_file() and _job(place) == self.name

    def _check_space(self, directory: Path, shards: Sequence[int]) -> None:
        """Raise ValueError if the disk is too small for some shards."""
        num_records = sum(self.sizes[shard] for shard in shards)
        record = math.prod(self.shape) * np.dtype(self.dtype).itemsize + _BYTES_BESIDE
        check_space(directory, num_records * record, f"{num_records:,} {self.what}")

    def _finish(self, directory: Path) -> Shards:
        return finalize(
            directory,
            num_shards=self.num_shards,
            shape=self.shape,
            dtype=self.dtype,
            class_names=self.class_names,
            about=self.about,
            job=self.name,
        )


def share_of(shards: Sequence[int], directory: Path, world: "World") -> list[int]:
    """Return the shards that a rank is to make: its share of those that are missing now.

    Ranks must call it together, and before they make any: rank 0's list is everyone's.

    Args:
        shards: Those that were missing when the ranks were first started.
        directory: Where they go. Ranks that are started again leave out what is there.
        world: The rank.
    """
    absent = set(missing_shards(directory, max(shards, default=-1) + 1))
    missing = world.from_main([shard for shard in shards if shard in absent])
    return missing[world.rank :: world.size]


def find_faults(place: Path, num_threads: int) -> list[Fault]:
    """Compare every file of a published set with what was noted when it was written, and say so.

    Args:
        place: The set's directory.
        num_threads: How many files are read at a time.

    Returns:
        What is wrong; empty if nothing is.

    Raises:
        FileNotFoundError: If there is no shard set at `place`.
        ValueError: If it is of another version's format.
    """
    header, faults = _header(place), []
    entries = _entries(place, header)
    if header is None:
        faults.append(Fault(HEADER, "is missing or damaged", None))
    elif fault := _content_fault(place / MANIFEST, header["manifest"]):
        faults.append(Fault(MANIFEST, fault, None))
    with (
        ThreadPoolExecutor(max(1, num_threads)) as pool,
        progress("verify", sum(entry["bytes"] for entry in entries.values() if entry), "B") as bar,
    ):

        def check(shard: int) -> list[Fault]:
            entry = entries[shard]
            found = _shard_faults(place, shard, entry)
            bar.update(entry["bytes"] if entry else 0)
            return found

        faults += itertools.chain.from_iterable(pool.map(check, entries))
    if faults:
        logger.warning("%s: %d files are damaged:%s", place, len(faults), _describe(place, faults))
    else:
        logger.info("%s: whole, %d shards as they were written", place, len(entries))
    return faults


def verify(places: Sequence[Path], num_threads: int) -> None:
    """Compare every file of several published sets with what was noted of it.

    Args:
        places: The sets' directories; one that is not there is passed over.
        num_threads: How many files are read at a time.

    Raises:
        FileNotFoundError: If none of them is there.
        DamagedError: If files are damaged; the log names them.
    """
    present = [place for place in places if place.is_dir()]
    if not present:
        raise FileNotFoundError(
            f"nothing to verify: no set at {', '.join(map(str, places))}; run preprocess first"
        )
    for place in places:
        if place not in present:
            logger.warning("%s: no set here, passed over", place)
    faults = {place: find_faults(place, num_threads) for place in present}
    if num := sum(map(len, faults.values())):
        damaged = [_describe(place, found) for place, found in faults.items() if found]
        raise DamagedError(
            f"{num} files are damaged; run the repair pipeline of the dataset, which makes only "
            f"those anew:{''.join(damaged)}"
        )


def _describe(place: Path, faults: Sequence[Fault]) -> str:
    """Return the first faults as text, a line each."""
    lines = [f"{place / fault.file}: {fault.reason}" for fault in faults[:_NAMED]]
    more = [f"and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
    return "".join(f"\n  {line}" for line in [*lines, *more])


def _entries(place: Path, header: dict[str, Any] | None) -> dict[int, dict[str, Any] | None]:
    """Return what was noted of each shard, in the header if it is whole; None where it is lost."""
    if header:
        return dict(enumerate(header["shards"]))
    names = (re.fullmatch(r"shard-(\d+)\.(arrow|json)", file.name) for file in place.iterdir())
    numbers = [int(match[1]) for match in names if match]
    return {shard: _noted(place, shard) for shard in range(max(numbers, default=-1) + 1)}


def _header(place: Path) -> dict[str, Any] | None:
    """Return the header of a set; None if it is damaged, or missing where there are shards.

    Raises:
        FileNotFoundError: If there is no shard set.
        ValueError: If it is of another version's format.
    """
    try:
        return read_header(place)
    except DamagedError:
        return None
    except FileNotFoundError:
        if any(place.glob("shard-*.*")):
            return None
        raise


def _job(place: Path) -> str | None:
    """Return the name of the job that made a set; None if it is of another version's format."""
    try:
        return str(read_header(place)["job"])
    except DamagedError:
        raise
    except ValueError:
        return None


def _noted(place: Path, shard: int) -> dict[str, Any] | None:
    """Return what a shard's writer noted of it; None where that is lost too."""
    try:
        return entry_of(read_checked(place / summary_name(shard)))
    except DamagedError:
        return None


def _shard_faults(place: Path, shard: int, entry: dict[str, Any] | None) -> list[Fault]:
    if entry is None:
        return [Fault(shard_name(shard), "nothing is known of it any more", shard)]
    faults = []
    if fault := _content_fault(place / shard_name(shard), entry):
        faults.append(Fault(shard_name(shard), fault, shard))
    if _noted(place, shard) != entry:
        faults.append(Fault(summary_name(shard), "is missing or damaged", shard))
    return faults


def _content_fault(file: Path, entry: dict[str, Any]) -> str | None:
    """Say how a file differs from its length and sha256; None if it does not."""
    if fault := length_fault(file, entry["bytes"]):
        return fault
    found = sha256_of(file)
    if found == entry["sha256"]:
        return None
    return f"is damaged: its sha256 is {found}, not {entry['sha256']}"


def _difference(directory: Path, shard: int, expected: dict[str, Any] | None) -> str | None:
    """Say how a shard that was made again differs from what was noted of it; None: it does not."""
    made = entry_of(read_checked(directory / summary_name(shard)))
    if expected is None or made == expected:
        return None
    return (
        f"made again, it is another one (sha256 {made['sha256']} instead of {expected['sha256']}): "
        "inputs, versions, batch size or the kind of device differ from those that made the set"
    )


def _put(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all; whoever has the old one open keeps it."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
