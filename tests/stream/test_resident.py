"""The whole-model pass against the streamed one: the same sums, bit for bit."""

from pathlib import Path

import torch
from torch import Tensor, nn

from quantriage.model.capture import WeightCall
from quantriage.stream.loss_hessians import BlockSums, LossHessians, loss_hessians
from quantriage.stream.resident import resident_backward, resident_bytes
from quantriage.stream.stream import BlockGradients
from small_models import Saved, some_tokens, stream_of

TOKENS = some_tokens(4)
CPU = torch.device("cpu")


def test_sums_are_those_of_the_streamed_pass(saved: Saved, tmp_path: Path) -> None:
    model, model_map = saved.open()
    streamed = stream_of(model, model_map, TOKENS, tmp_path)
    expected: dict[int, dict[object, Tensor]] = {}

    def on_block(index: int, _: nn.Module, gradients: BlockGradients) -> None:
        sums = loss_hessians(gradients, model_map.in_block(index), outputs=True)
        expected[index] = flat(sums)

    streamed.forward(keep=True)
    streamed.head_gradients(torch.Generator().manual_seed(5))
    streamed.backward(on_block)

    whole = stream_of(model, model_map, TOKENS, tmp_path)
    whole.embed()
    sums = {b: LossHessians(model_map.in_block(b), CPU, outputs=True) for b in range(model_map.blocks)}

    def of_batch(block: int, start: int, seen: list[tuple[WeightCall, Tensor]]) -> None:
        for call, gradient in seen:
            sums[block].on_gradient(start, call, gradient)
        sums[block].flush()

    resident_backward(whole, torch.Generator().manual_seed(5), of_batch)
    for index, of_block in expected.items():
        found = flat(sums[index].finish())
        assert found.keys() == of_block.keys()
        for key, value in of_block.items():
            assert value.abs().max() > 0 or saved.name in ("mixtral", "qwen3_moe")
            assert torch.equal(found[key], value), (index, key)


def flat(sums: BlockSums) -> dict[object, Tensor]:
    inputs: dict[object, Tensor] = {key: total.value() for key, total in sums.inputs.items()}
    return inputs | {name: torch.cat(total.values()) for name, total in sums.outputs.items()}


def test_the_estimate_counts_weights_and_saved_activations(llama: Saved, tmp_path: Path) -> None:
    model, model_map = llama.open()
    stream = stream_of(model, model_map, TOKENS, tmp_path)
    stream.embed()
    weights = sum(p.numel() * 4 for i in range(model_map.blocks) for p in stream.load(i).parameters())
    longer = stream_of(model, model_map, some_tokens(4, 32), tmp_path)
    longer.embed()
    # Twice the tokens of a batch: twice the activations, or a little more where attention is saved.
    activations = [resident_bytes(s) - weights for s in (stream, longer)]
    assert 1.5 < activations[1] / activations[0] < 3
    inputs = 2 * 16 * sum(site.shape[1] * 4 for site in model_map.sites)
    assert activations[0] > inputs / 3  # some sites share an input; norms and attention save more
