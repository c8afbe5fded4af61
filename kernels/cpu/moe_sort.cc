// Choices sorted by expert, stably. Blocks of choices are counted per expert; what comes before a block says where its choices go,
// so that blocks can be placed in any order.
#include <algorithm>
#include <cmath>

#include "kernels/abi/small_floats.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"

namespace mt::cpu {
namespace {

// At most 32 blocks of at least 4096 choices.
int64_t BlockChoices(int64_t choices) { return std::max<int64_t>(4096, CeilDivide(choices, 32)); }
int64_t Blocks(const mt_moe_sort_args& args) {
  const int64_t choices = args.rows * args.top_k;
  return CeilDivide(choices, BlockChoices(choices));
}
bool DropsLightest(const mt_moe_sort_args& args) {
  return args.capacity > 0 && args.drop_lightest != 0;
}

struct Scratch {
  uint64_t*
      weighed;      // (N k): weight and choice of an expert's choices, if the lightest are dropped
  int32_t* order;   // (N k): all choices by expert
  int32_t* before;  // (blocks, E): choices of the expert in earlier blocks
  int32_t* first;   // (E + 1): of each expert in `order`
  explicit Scratch(const mt_moe_sort_args& args) {
    const int64_t choices = args.rows * args.top_k;
    weighed = static_cast<uint64_t*>(args.workspace);
    order = reinterpret_cast<int32_t*>(weighed + (DropsLightest(args) ? choices : 0));
    before = order + choices;
    first = before + Blocks(args) * args.experts;
  }
};

// All choices by expert, none dropped.
void SortAll(const mt_moe_sort_args& args, const Scratch& scratch) {
  const int64_t choices = args.rows * args.top_k, E = args.experts, blocks = Blocks(args),
                size = BlockChoices(choices);
  ParallelBlocks(blocks, [&](int64_t block) {
    int32_t* count = scratch.before + block * E;
    std::fill_n(count, E, 0);
    const int64_t last = std::min(choices, (block + 1) * size);
    for (int64_t i = block * size; i < last; ++i) ++count[args.ids[i]];
  });
  int32_t next = 0;
  for (int64_t e = 0; e < E; ++e) {
    scratch.first[e] = next;
    for (int64_t block = 0; block < blocks; ++block) {
      int32_t& count = scratch.before[block * E + e];
      const int32_t mine = count;
      count = next;
      next += mine;
    }
  }
  scratch.first[E] = next;
  ParallelBlocks(blocks, [&](int64_t block) {
    int32_t* place = scratch.before + block * E;
    const int64_t last = std::min(choices, (block + 1) * size);
    for (int64_t i = block * size; i < last; ++i)
      scratch.order[place[args.ids[i]]++] = static_cast<int32_t>(i);
  });
}

// Smaller for what is heavier, then for what comes first; NaN is lighter than every number.
uint64_t Lightness(float weight, int32_t choice) {
  uint32_t bits = UINT32_MAX;
  if (!std::isnan(weight)) {
    bits = mt_float_bits(weight + 0.0f);  // -0 equals 0
    bits = (bits & 0x80000000u) != 0 ? bits : bits ^ 0x7fffffffu;
  }
  return uint64_t{bits} << 32 | static_cast<uint32_t>(choice);
}

// The lightness up to which an expert's choices stay.
uint64_t LightestKept(const mt_moe_sort_args& args, const Scratch& scratch, int64_t expert) {
  const int32_t first = scratch.first[expert], last = scratch.first[expert + 1];
  for (int32_t i = first; i < last; ++i) {
    const int32_t choice = scratch.order[i];
    scratch.weighed[i] = Lightness(static_cast<const float*>(args.weights)[choice], choice);
  }
  uint64_t* const kept = scratch.weighed + first + args.capacity - 1;
  std::nth_element(scratch.weighed + first, kept, scratch.weighed + last);
  return *kept;
}

// An expert's choices, from `order` to where they end up.
void PlaceExpert(const mt_moe_sort_args& args, const Scratch& scratch, int64_t expert) {
  const int32_t first = scratch.first[expert], last = scratch.first[expert + 1];
  const bool too_many = args.capacity > 0 && last - first > args.capacity;
  const bool by_weight = too_many && args.drop_lightest != 0;
  const uint64_t most = by_weight ? LightestKept(args, scratch, expert) : 0;
  const float* weights = static_cast<const float*>(args.weights);
  int32_t place = args.offsets[expert];
  const int32_t end = args.offsets[expert + 1];
  for (int32_t i = first; i < last; ++i) {
    const int32_t choice = scratch.order[i];
    const bool kept = by_weight ? Lightness(weights[choice], choice) <= most : place < end;
    args.position[choice] = kept ? place : -1;
    if (kept) args.source[place++] = choice;
  }
}

}  // namespace

int64_t MoeSortWorkspace(const mt_moe_sort_args& args) {
  return args.rows * args.top_k * (DropsLightest(args) ? 12 : 4) +
         4 * (Blocks(args) * args.experts + args.experts + 1);
}

void MoeSort(const mt_moe_sort_args& args) {
  const Scratch scratch(args);
  SortAll(args, scratch);
  int64_t next = 0;
  args.offsets[0] = 0;
  for (int64_t e = 0; e < args.experts; ++e) {
    const int64_t count = scratch.first[e + 1] - scratch.first[e];
    next += args.capacity > 0 ? std::min(count, args.capacity) : count;
    args.offsets[e + 1] = static_cast<int32_t>(next);
  }
  ParallelBlocks(args.experts, [&](int64_t expert) { PlaceExpert(args, scratch, expert); });
  const int64_t choices = args.rows * args.top_k;
  std::fill(args.source + next, args.source + choices, -1);
  if (args.dropped != nullptr) *args.dropped += static_cast<double>(choices - next);
}

}  // namespace mt::cpu
