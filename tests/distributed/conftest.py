import pytest
import torch.distributed as dist


@pytest.fixture
def one_rank():
    """A group of this process alone, with the collectives of gloo."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()
