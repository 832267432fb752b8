"""Fuzz the reading of image files and of their headers: `python -m tests.fuzz.fuzz_images`.

Guided by coverage where atheris is installed (it is, for the tests, where there is a wheel);
otherwise by mutations of the corpus without guidance, and it says which. Whatever a file holds,
reading it ends in an image or in one clean sentence; anything else ends the run with the file's
bytes in the folder given by --failures.
"""

import argparse
import hashlib
import itertools
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path, PurePath

try:
    import atheris
except ImportError:
    atheris = None

if atheris is None:
    from calib_library import header
    from calib_library.images import frame_file
    from calib_library.images.row_reader import RowReader
else:
    with atheris.instrument_imports(include=["calib_library"]):
        from calib_library import header
        from calib_library.images import frame_file
        from calib_library.images.row_reader import RowReader
from calib_library.errors import HeaderError, ImageError
from tests import hostile

LARGEST = 40_000
"""bytes of an input; everything that decides lies in the headers."""
ENDLESS_S = 200
"""s; an input that takes longer than any machine is busy."""
MEMORY = 1_500_000_000
"""bytes that reading may take beyond what the process has at its start."""

_VALUES = (
    *(b"0 -1 1 2 3 17 32767 65536 2147483648 9223372036854775808 1E+400 nan -inf T F".split()),
    *(b"'' ' ' 'IMAGE' 'BINTABLE' 'RICE_1' 'GZIP_1' 'GZIP_2' 'NOCOMPRESS' '1PB(0)' '1QB'".split()),
    *(b"10 8 16 -32 -64 1000000000 6,4E-05 1D300 '2026-11-20T24:60:60' '12:34:56' '../..'".split()),
)
_KEYWORDS = (
    b"SIMPLE XTENSION BITPIX NAXIS NAXIS1 NAXIS2 NAXIS3 PCOUNT GCOUNT BZERO BSCALE BLANK END "
    b"CONTINUE HIERARCH COMMENT ZIMAGE ZCMPTYPE ZBITPIX ZNAXIS ZNAXIS1 ZNAXIS2 ZTILE1 ZTILE2 "
    b"TFIELDS TFORM1 TTYPE1 THEAP ZQUANTIZ ZNAME1 ZVAL1 DATASUM CHECKSUM NEXTEND IMAGETYP DATE-OBS "
    b"EXPTIME EXPOSURE CCD-TEMP GAIN XBINNING BAYERPAT XBAYROFF FILTER OBJECT RA DEC MJD-OBS "
    b"INSTRUME ROWORDER STACKCNT TRIMSEC CALSTAT EGAIN SET-TEMP SATURATE FIELD PICTTYPE"
).split()


def seeds():
    """What mutations start from: whole files, and the small ones among the hostile."""
    whole = [hostile.image("IMAGETYP= 'Light'", "EXPTIME = 60.0", bitpix=b) for b in (16, -32, 64)]
    whole += [hostile.compressed(kind) for kind in ("RICE_1", "GZIP_1", "GZIP_2")]
    broken = (*hostile.CORPUS.values(), *hostile.TOLERATED.values())
    return whole + [data for data in broken if len(data) <= LARGEST]


def mutate(data, rng):
    """Change a file as a person would who knows FITS: cards, blocks, lengths."""
    raw = bytearray(data or bytes(2880))
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(raw) // 80 + 1) * 80
        match rng.randrange(7):
            case 0:
                word = rng.choice(_KEYWORDS).ljust(8) + b"= " + rng.choice(_VALUES)
                raw[at : at + 80] = word.ljust(80)
            case 1:
                raw[at + 10 : at + 30] = rng.choice(_VALUES).rjust(20)
            case 2:
                raw[at:at] = raw[at : at + 80 * rng.randrange(1, 4)]
            case 3:
                del raw[at : at + 80 * rng.randrange(1, 4)]
            case 4:
                del raw[rng.randrange(len(raw) + 1) :]
            case 5:
                raw[at:at] = rng.choice((hostile.PART, bytes(2880), b" " * 2880))
            case _:
                for _ in range(rng.randrange(1, 9)):
                    if raw:
                        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw[:LARGEST])


def check(path):
    """Read one file in every way there is."""
    try:
        info = frame_file.probe(path)
        loaded = frame_file.load(path)
        assert loaded.pixels.shape == loaded.info.shape == info.shape
        assert str(loaded.pixels.dtype) == info.storage
        if len(info.shape) == 2:
            with RowReader(path) as reader:
                rows = reader.to_float(reader.rows(0, min(3, info.shape[0])))
                assert rows.shape == (min(3, info.shape[0]), info.shape[1])
        record = header.parse(info.cards, shape=info.shape, storage=info.storage, path=PATH)
        target = header.target_name(record, PATH)
        assert target.isprintable()
        assert "/" not in target
        assert not target.startswith(".")
        assert type(record).from_json(record.to_json()) == record
    except (ImageError, HeaderError) as error:
        sentence = str(error)
        assert sentence.isprintable(), sentence
        assert len(sentence) < 400, sentence


PATH = PurePath("night/frame.fits")


def main():
    """Fuzz for a time, or so many inputs; exit code 1 and the input's bytes where something else
    came out.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, help="end after so many inputs, however long it takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--failures", type=Path, default=Path())
    parser.add_argument("--unguided", action="store_true", help="without atheris")
    given = parser.parse_args()
    warnings.simplefilter("error")
    mapped = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        path = Path(folder) / "frame.fits"

        def one(data):
            path.write_bytes(data)
            check(path)

        if atheris is None or given.unguided:
            unguided(one, given)
        else:
            guided(one, given, Path(folder))


def guided(one, given, folder):
    """By coverage; does not return: libFuzzer ends the process and prints its count."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for n, data in enumerate(seeds()):
        (corpus / f"{n}").write_bytes(data)

    def custom(data, most, seed):
        rng = random.Random(seed)
        changed = mutate(data, rng) if rng.random() < 0.5 else atheris.Mutate(data, most)
        return changed[:most]

    bound = f"-runs={given.runs}" if given.runs else f"-max_total_time={given.seconds}"
    options = [bound, f"-max_len={LARGEST}", f"-seed={given.seed}", "-rss_limit_mb=3000"]
    options += [f"-artifact_prefix={given.failures}/", f"-timeout={ENDLESS_S}"]
    print("guided by coverage (atheris)", flush=True)
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=custom)
    atheris.Fuzz()


def unguided(one, given):
    """By mutations alone."""
    rng = random.Random(given.seed)
    pool = seeds()
    end = time.monotonic() + given.seconds
    for count in itertools.count(1):
        data = mutate(rng.choice(pool), rng)
        started = time.process_time()
        try:
            one(data)
            assert time.process_time() - started < ENDLESS_S, "endless"
        except BaseException:
            name = given.failures / f"crash-{hashlib.sha1(data).hexdigest()}"
            name.write_bytes(data)
            print(f"failed after {count} files: {name}", flush=True)
            raise
        if rng.random() < 0.02:
            pool.append(data)
        if count >= given.runs if given.runs else time.monotonic() >= end:
            print(f"Done {count} runs, without guidance (atheris is not here)")
            return


if __name__ == "__main__":
    main()
