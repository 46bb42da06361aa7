"""Where PyTorch's side computes: a CPU with as many threads as XLA has, or a GPU."""

import torch

_device = torch.device("cpu")


def use(options) -> None:
    """Settles threads and device of this process."""
    global _device
    _device = torch.device(options.device)
    torch.set_num_threads(options.threads)


def device() -> torch.device:
    """The device settled on."""
    return _device


def wait() -> None:
    """Until the device has done what it was given."""
    if _device.type == "cuda":
        torch.cuda.synchronize()


def tensor(array):
    """A numpy array on the device."""
    return torch.from_numpy(array).to(_device)


def autocast():
    """bfloat16 products where PyTorch finds them safe."""
    return torch.autocast(_device.type, dtype=torch.bfloat16)
