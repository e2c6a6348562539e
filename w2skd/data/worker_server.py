"""Loaded by the process that data workers are forked from, before the first of them starts.

That process never computes, so it has a single thread and forking it is safe. It loads once what all workers need.
Signals to the process group are blocked in it and, until they ignore them, in the workers: the main process decides
when to stop, and the server ends with it.
"""

import signal

import w2skd.data.image_stream  # noqa: F401 (loads torch, torchvision and Pillow)
from w2skd.data.workers import MAIN_PROCESS_SIGNALS

signal.pthread_sigmask(signal.SIG_BLOCK, MAIN_PROCESS_SIGNALS)
