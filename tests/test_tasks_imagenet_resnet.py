"""The residual network for ImageNet against the same network in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt.data.arrays import ArrayData
from outeropt.errors import ConfigError
from outeropt.tasks import layers, norms
from outeropt.tasks.images.imagenet_resnet import ImageNetResNet
from task_fixtures import KEY, on_all_splits


torch = pytest.importorskip("torch")
nn = torch.nn
WIDTHS, BLOCKS = (4, 6, 8), 2
MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


class Block(nn.Module):
    def __init__(self, features, width, stride):
        super().__init__()
        self.conv0 = nn.Conv2d(features, width, 3, stride, 1, bias=False)
        self.norm0 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        if stride > 1 or features != width:
            self.conv_shortcut = nn.Conv2d(features, width, 1, stride, bias=False)
            self.norm_shortcut = nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.norm1(self.conv1(torch.relu(self.norm0(self.conv0(x)))))
        if hasattr(self, "conv_shortcut"):
            x = self.norm_shortcut(self.conv_shortcut(x))
        return torch.relu(x + y)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False)
        self.norm0 = nn.BatchNorm2d(WIDTHS[0])
        self.pool = nn.MaxPool2d(3, 2, 1)
        ins = (WIDTHS[0], *WIDTHS)
        self.groups = nn.ModuleList(
            nn.ModuleList(
                Block(width if i else ins[g], width, 2 if g and not i else 1) for i in range(BLOCKS)
            )
            for g, width in enumerate(WIDTHS)
        )
        self.head = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm0(self.conv0(x))))
        for group in self.groups:
            for block in group:
                x = block(x)
        return self.head(x.mean((2, 3)))


def places(net):
    """Where the leaves of ours are in the other's modules: name, index of the stacked block, module, leaf."""
    for part, module in [("stem", net.conv0), ("stem", net.norm0)]:
        yield part, ..., "0", module
    for g, group in enumerate(net.groups):
        for i, block in enumerate(group):
            part, index = (f"rest{g}", i - 1) if i else (f"entry{g}", ...)
            for name, module in block.named_children():
                yield part, index, name.removeprefix("conv").removeprefix("norm"), module


def leaves_of(net, read):
    """Ours by name, from what `read` makes of the other's tensors."""
    found = {"head_w0": read(net.head.weight).T, "head_b0": read(net.head.bias)}
    for part, index, number, module in places(net):
        if isinstance(module, nn.Conv2d):
            named = {f"{part}_w{number}": read(module.weight).transpose(2, 3, 1, 0)}
        else:
            named = {
                f"{part}_scale{number}": read(module.weight),
                f"{part}_offset{number}": read(module.bias),
            }
        found |= {name: leaf if index is ... else leaf[None] for name, leaf in named.items()}
    return found


def statistics_of(net):
    found = {}
    for part, index, number, module in places(net):
        if isinstance(module, nn.BatchNorm2d):
            leaf = np.stack([module.running_mean.numpy(), module.running_var.numpy()])
            found[f"{part}_statistics{number}"] = leaf if index is ... else leaf[None]
    return found


def as_numpy(tensor):
    return tensor.detach().numpy()


@pytest.fixture(scope="module")
def both():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    rows = {"image": jnp.asarray(images), "label": jnp.asarray(random.integers(10, size=6), jnp.int32)}
    task = ImageNetResNet("mine", ArrayData(on_all_splits(rows), 6), WIDTHS, BLOCKS, MEAN, DEVIATION)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):  # other than at the start, so that they matter
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return task, net, rows


def test_a_step_and_an_evaluation_are_pytorch_s(both):
    task, net, rows = both
    params, (_, state) = leaves_of(net, as_numpy), task.init(KEY)
    shapes = jax.eval_shape(lambda: task.init(KEY)[0])
    assert {name: leaf.shape for name, leaf in shapes.items()} == {
        n: leaf.shape for n, leaf in params.items()
    }
    pixels = (np.asarray(rows["image"]) / np.float32(255) - MEAN) / DEVIATION
    x, y = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32), torch.tensor(rows["label"]).long()

    net.train()
    logits = net(x)
    loss = nn.functional.cross_entropy(logits, y)
    loss.backward()
    net.eval()
    evaluated = nn.functional.cross_entropy(net(x), y)

    @jax.jit
    def ours(params, state):
        value_and_grad = jax.value_and_grad(task.loss, has_aux=True)
        (value, (after, metrics)), grads = value_and_grad(params, state, rows, KEY)
        again, (kept, _) = task.loss(params, after, rows, None)
        images = rows["image"].astype(jnp.float32) / 255
        return value, grads, after, metrics, again, kept, task.logits(params, state, images, KEY)[0]

    value, grads, after, metrics, again, kept, scores = ours(params, state)
    np.testing.assert_allclose(scores, as_numpy(logits), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    wanted = leaves_of(net, lambda tensor: tensor.grad.numpy())
    assert wanted.keys() == grads.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, wanted[name], rtol=1e-4, atol=1e-5 * np.abs(wanted[name]).max())
    running = statistics_of(net)
    assert running.keys() == after.keys()
    for name, statistics in after.items():
        np.testing.assert_allclose(statistics, running[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(kept[name], statistics)
    np.testing.assert_allclose(again, evaluated.item(), rtol=1e-4)


@pytest.mark.parametrize("size", [7, 8])
def test_overlapping_pools_are_pytorch_s(size):
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    x = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    pooled = nn.functional.max_pool2d(x, 3, 2, 1)
    pooled.square().sum().backward()
    got, grad = (
        layers.overlapping_max_pool(images),
        jax.grad(lambda images: jnp.sum(layers.overlapping_max_pool(images) ** 2))(images),
    )
    np.testing.assert_array_equal(got, as_numpy(pooled).transpose(0, 2, 3, 1))
    np.testing.assert_allclose(grad, x.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-6)


def test_weights_start_as_torchvision_s(both):
    task = ImageNetResNet("mine", both[0].data, (32, 64), BLOCKS, MEAN, DEVIATION)
    params, state = jax.jit(lambda: task.init(KEY))()
    fans = {"stem_w0": 49 * 32, "entry1_w0": 9 * 64, "entry1_w_shortcut": 64, "rest1_w1": 9 * 64}
    for name, fan_out in fans.items():
        assert np.var(params[name]) == pytest.approx(2 / fan_out, rel=0.1), name
        assert np.mean(params[name]) == pytest.approx(0, abs=0.1 * (2 / fan_out) ** 0.5), name
    for name in ("head_w0", "head_b0"):
        assert np.abs(params[name]).max() <= 64**-0.5
    assert np.abs(params["head_w0"]).max() > 0.98 * 64**-0.5
    assert all((leaf == 1).all() for name, leaf in params.items() if "scale" in name)
    assert all((leaf == 0).all() for name, leaf in params.items() if "offset" in name)
    np.testing.assert_array_equal(state["stem_statistics0"], norms.fresh_statistics(32, "torch_batch_norm"))


def test_every_channel_needs_its_moments():
    rows = {"image": jnp.zeros((2, 32, 32, 3), jnp.uint8), "label": jnp.zeros(2, jnp.int32)}
    with pytest.raises(ConfigError, match="1 means and 1 deviations were given for images of 3 channels"):
        ImageNetResNet("mine", ArrayData(on_all_splits(rows), 2), (4,), 1, (0.5,), (0.2,))
