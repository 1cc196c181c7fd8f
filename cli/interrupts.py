"""Ctrl-C and its like while a run is under way: finish the step, save, and say how to go on."""
import contextlib
import os
import signal

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]


class Interrupts:
    """Catches the first signal, for `received` to tell; the same again ends the process at once.

    exit_code: what a shell expects: 130 after Ctrl-C, 143 after SIGTERM, 129 after a hang-up.
    """

    def __init__(self):
        self.number, self.before = None, {}

    def __enter__(self):
        for number in SIGNALS:
            # note: who is told to ignore one keeps to it: `nohup` outlives its terminal that way
            if signal.getsignal(number) in (signal.SIG_IGN, None):
                continue
            try:
                self.before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: whoever runs us there has his own way
                break
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.number == number:
            os._exit(self.exit_code)  # safe at any moment: files are written whole or not at all
        if self.number is not None:  # torchrun sends SIGTERM after the terminal's Ctrl-C
            return
        self.number = number
        if number == signal.SIGINT:
            # note: print() may be under way, and refuses to be called inside itself
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping as soon as this is done; Ctrl-C again stops at once\n")

    def received(self):
        """Returns "interrupted" after a signal, else None."""
        return None if self.number is None else "interrupted"

    @property
    def exit_code(self):
        return 128 + self.number
