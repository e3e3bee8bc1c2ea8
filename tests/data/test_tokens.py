import torch

from selfdistill.data.tokens import pack_int8, packed_dim, unpack_int8


def test_an_entry_is_off_by_half_a_level_of_its_tokens_scale():
    torch.manual_seed(0)
    tokens = torch.randn(5, 3, 7, 96) * torch.logspace(-6, 4, 7)[:, None]
    packed = pack_int8(tokens)
    assert packed.dtype == torch.int8
    assert packed.shape == (5, 3, 7, packed_dim(96))
    level = tokens.abs().amax(-1, keepdim=True) / 127
    assert ((unpack_int8(packed) - tokens).abs() <= 0.5001 * level).all()


def test_a_tokens_largest_entry_and_zero_are_kept():
    tokens = torch.tensor([[0.0, -3.5, 1.0], [0.0, 0.0, 0.0]])
    unpacked = unpack_int8(pack_int8(tokens))
    torch.testing.assert_close(unpacked[0, :2], tokens[0, :2])
    assert unpacked[1].tolist() == [0, 0, 0]


def test_a_wide_token_keeps_its_direction_to_a_few_parts_in_ten_thousand():
    torch.manual_seed(0)
    tokens = torch.randn(500, 768)
    tokens[:, 3] *= 8  # a channel that stands out, as those of trained ViTs do
    cosine = torch.cosine_similarity(unpack_int8(pack_int8(tokens)), tokens, dim=-1)
    assert cosine.min() > 1 - 1e-3
    assert cosine.mean() > 1 - 3e-4


def test_packed_tokens_may_lie_anywhere_in_memory():
    tokens = torch.randn(4, 2, 6, 10)
    packed = pack_int8(tokens)
    assert torch.equal(unpack_int8(packed[:, 1]), unpack_int8(packed)[:, 1])
    assert torch.equal(unpack_int8(packed.clone()[1:, 0, ::2]), unpack_int8(packed)[1:, 0, ::2])
