import ctypes
import sys

import pytest

from rmt.deployment.signal_stack import _SignalStack, keep_signal_stack


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is treated")
def test_a_replaced_stack_is_put_back() -> None:
    libc = ctypes.CDLL(None)

    def current() -> tuple[int | None, int, int]:
        stack = _SignalStack()
        libc.sigaltstack(None, ctypes.byref(stack))
        return stack.pointer, stack.flags, stack.size

    before = current()
    other = ctypes.create_string_buffer(1 << 16)

    def replace_it() -> None:
        with keep_signal_stack():
            libc.sigaltstack(ctypes.byref(_SignalStack(ctypes.addressof(other), 0, 1 << 16)), None)
            assert current()[0] == ctypes.addressof(other)
            raise KeyError  # also after an error

    with pytest.raises(KeyError):
        replace_it()
    assert current() == before
