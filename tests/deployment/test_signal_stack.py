import ctypes
import sys

import pytest

from rmt.deployment.signal_stack import _SignalStack, keep_signal_stack

SIZE = 1 << 16


def current() -> tuple[int | None, int, int]:
    stack = _SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.pointer, stack.flags, stack.size


def replace_and_fail(pointer: int) -> None:
    """Do what OpenVINO does, and end in an error."""
    with keep_signal_stack():
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(pointer, 0, SIZE)), None)
        assert current()[0] == pointer
        raise KeyError


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is treated")
def test_a_replaced_stack_is_put_back() -> None:
    before, other = current(), ctypes.create_string_buffer(SIZE)
    with pytest.raises(KeyError):
        replace_and_fail(ctypes.addressof(other))
    assert current() == before
