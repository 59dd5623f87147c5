#include "operators.h"
#include "run.h"

namespace msf {

bool has_pair_dots() { return cpu::has_pair_dots(); }

Tensor spatial_attention_fwd(const Tensor& qkv, int64_t num_heads, bool by_part) {
  STD_TORCH_CHECK(qkv.scalar_type() != ScalarType::Double, "qkv must be float16, bfloat16 or float32");
  const int64_t channels = qkv.size(2) / 3;
  const int64_t head_dim = channels / num_heads;
  // Pairs are read at once, so the rows of both elements must begin at even places.
  const bool is_readable = qkv.stride(2) == 1 && qkv.stride(1) % 2 == 0 && qkv.stride(0) % 2 == 0;
  const Tensor packed = is_readable ? qkv : torch::stable::contiguous(qkv);
  Tensor out = empty(qkv, {qkv.size(0), qkv.size(1), channels}, qkv.scalar_type());
  if (qkv.numel() == 0) return out;

  AttentionArgs args{};
  args.qkv = packed.const_data_ptr();
  args.type = scalar_of(qkv, "qkv");
  args.item_stride = packed.stride(0);
  args.token_stride = packed.stride(1);
  args.head_stride = by_part ? head_dim : 3 * head_dim;
  args.part_stride = by_part ? channels : head_dim;
  args.out = out.mutable_data_ptr();
  args.n_heads = num_heads;
  args.n_tokens = qkv.size(1);
  args.head_dim = head_dim;
  const bool by_pairs = args.type == Scalar::kBFloat16 && head_dim % 16 == 0 && has_pair_dots();
  run_cpu(by_pairs ? MSF_AT_LEVEL(attention_of_pairs) : MSF_AT_LEVEL(spatial_attention), args,
          qkv.size(0) * num_heads, grain(4 * head_dim * qkv.size(1)));
  return out;
}

}  // namespace msf
