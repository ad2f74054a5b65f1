"""What holds for all tests."""

from __future__ import annotations

import signal

# A suite that a shell started in the background ignores interrupts, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
