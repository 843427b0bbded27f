"""Tiny models are trained on one thread: several would wait for one another longer than they work,
and hundreds of times as long where other programs run beside."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
