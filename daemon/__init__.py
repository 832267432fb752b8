"""The service that watches a camera's output folder all night."""

import os

# Before numpy is loaded: linear algebra here is small, and its idle threads cost each start a
# quarter of a second of processor time, twice.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# astroscrappy is asked about patches of a few pixels: its threads would wait for one another
# far longer than they work, on a busy machine for minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
