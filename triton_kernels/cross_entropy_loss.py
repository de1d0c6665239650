"""Cross-entropy of all rows as one number, and its gradient in the same pass.

The notation and contract are those of ``cross_entropy``. The loss is the sum over the counted rows
of

    (1 - label_smoothing) * nll + label_smoothing / n_cols * smooth + z_loss * lse**2

divided by the denominator, with nll = sum(w * q * (lse - logits)), where q is the one-hot of the
target or its probabilities and w the class weights or 1. A row whose target is ``ignore_index`` is
not counted. The gradient of a row is

    dlogits = (a * p - b * w * q - s * w) * softcap_grad(logits)
    b = (1 - label_smoothing) / denominator, s = label_smoothing / n_cols / denominator
    a = b * sum(w * q) + s * sum(w) + 2 * z_loss / denominator * lse

times dloss, the incoming gradient of the loss, where it is known. With reduction "none" the loss is
that of each row, and dloss too, and nothing is divided.

The default denominator of class indices is the sum of their weights. ``weight_sum_kernel`` forms it
first, so the loss kernels write an already normalized gradient; a single program that has all rows
needs no other kernel. ``cross_entropy_loss_kernel`` holds
whole rows in a tile and reads them once; ``cross_entropy_loss_online_kernel`` reads longer rows
twice, the second time partly from the L2 cache.

Programs exchange partial sums in memory. Kernels on one stream run in order, so plain stores
publish the partial sums of weights; a counter with acquire and release semantics, whose initial
value is 0, orders the partial losses inside the loss kernels (``reduce_loss``). The order of all
sums is fixed.
"""

import triton
import triton.language as tl

from .arithmetic import compute_dtype, exp, softcap, softcap_grad
from .loss_epilogue import apply_options, load_denominator, load_dloss, reduce_loss
from .online_softmax import (
    as_partials,
    combine_row_sums,
    empty_row_sums,
    load_logits,
    tile_row_stats,
    update_row_sums,
)
from .targets import (
    class_weight_at,
    load_class_weights,
    load_target_logits,
    load_targets,
    one_hot,
    store_targets,
    subtract_class_gradient,
    target_gradient,
)
from .tiles import MIN_SHARED_ROWS, column_tile, load_tile, row_block, store_tile

# loading the target first and skipping ignored rows pays off from this many columns on
MIN_SKIPPED_COLS = tl.constexpr(2048)


@triton.jit
def weight_sum_kernel(
    target_ptr,
    class_weight_ptr,
    partials_ptr,
    counter_ptr,
    n_rows,
    n_cols,
    ignore_index,
    BLOCK_ROWS: tl.constexpr,
):
    """partials = sum(weight of each counted row) of each program's rows, counter = 0."""
    dtype: tl.constexpr = partials_ptr.dtype.element_ty
    # int64: the number of rows may pass 2**31
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros((), dtype)
    for start in range(program * BLOCK_ROWS, n_rows, tl.num_programs(0) * BLOCK_ROWS):
        rows = tl.arange(0, BLOCK_ROWS)
        exist = rows < tl.minimum(n_rows - start, BLOCK_ROWS).to(tl.int32)
        target = tl.load(target_ptr + start + rows, mask=exist, other=0).to(tl.int64)
        is_counted = exist & (target != ignore_index)
        total += tl.sum(class_weight_at(class_weight_ptr, target, is_counted, n_cols, dtype))
    tl.store(partials_ptr + program, total)
    if program == 0:
        tl.store(counter_ptr, 0)


@triton.jit
def cross_entropy_loss_kernel(
    logits,
    target,
    class_weight_ptr,
    dlogits,
    loss,
    denominator,
    n_rows,
    n_cols,
    loss_options,
    TILE: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """loss = sum(losses) / denominator and, unless None, dlogits, of rows that a tile holds."""
    dtype: tl.constexpr = compute_dtype(logits.ptr.dtype.element_ty)
    IS_INDEX: tl.constexpr = not target.ptr.dtype.element_ty.is_floating()
    HAS_SMOOTHING: tl.constexpr = loss_options.label_smoothing is not None
    # a barrier orders stores of one thread block alone, so in a cluster no store corrects another
    HAS_ONE_HOT: tl.constexpr = IS_INDEX and (TILE.packed or TILE.num_ctas > 1)
    rows = row_block(tl.program_id(0), n_rows, logits, TILE)
    targets = load_targets(target, class_weight_ptr, rows, n_cols, loss_options.ignore_index, dtype)
    dloss, targets = load_dloss(denominator.dloss, targets, rows, n_rows, dtype)
    target_logits = load_target_logits(logits, target, rows, targets, dtype)
    tile = column_tile(0, rows, n_cols, TILE)
    skips_rows: tl.constexpr = TILE.rows < MIN_SHARED_ROWS and TILE.cols >= MIN_SKIPPED_COLS
    needed_rows = targets.is_counted if skips_rows else None
    x = load_logits(logits, tile, True, dtype, TILE, SOFTCAP, None, needed_rows)
    if not skips_rows:
        # an ignored row has loss 0 and gradient 0, even if its logits are NaN
        x = tl.where(targets.is_counted[:, None], x, -float("inf"))
    weights = load_class_weights(target, class_weight_ptr, tile, n_cols, TILE, dtype)
    denominator_value, gradient_scale = load_denominator(denominator, targets, dloss, dtype)
    stats, exp_x = tile_row_stats(
        x, target, targets, softcap(target_logits, SOFTCAP), class_weight_ptr, weights, n_cols
    )
    losses, coefficients = apply_options(stats, targets, gradient_scale, loss_options, n_cols)
    if TILE.num_ctas > 1:
        # before the gradient, which the counter's release would otherwise wait for
        reduce_loss(losses, denominator_value, loss, rows, n_rows)
    if dlogits is not None:
        gradient = coefficients.a[:, None] * exp_x
        gradient = subtract_class_gradient(gradient, target, weights, coefficients, HAS_SMOOTHING)
        if HAS_ONE_HOT:
            # int32 saves a cluster registers; a row whose index it does not hold is NaN or ignored
            index = targets.index.to(tl.int32) if TILE.num_ctas > 1 else targets.index
            gradient -= one_hot(index, tile, coefficients.b * targets.weight)
        if SOFTCAP.cap is not None:
            # reload the logits before the softcap; keeping them costs too many registers
            x = load_tile(logits, tile, TILE, None, needed_rows).to(dtype)
            x = tl.where(targets.is_counted[:, None], x, 0.0)
        target_value = target_gradient(
            targets, target_logits, stats.softmax.row_max, coefficients, SOFTCAP, HAS_SMOOTHING
        )
        # in place: a block's threads have all read before one writes; a cluster's waited in the sum
        tl.debug_barrier()
        store_tile(dlogits, tile, gradient * softcap_grad(x, SOFTCAP), TILE)
        if IS_INDEX and not HAS_ONE_HOT:
            store_targets(dlogits, rows, targets, target_value)
    if TILE.num_ctas == 1:
        reduce_loss(losses, denominator_value, loss, rows, n_rows)


@triton.jit
def cross_entropy_loss_online_kernel(
    logits,
    target,
    class_weight_ptr,
    dlogits,
    loss,
    denominator,
    n_rows,
    n_cols,
    loss_options,
    TILE: tl.constexpr,
    N_PARTIALS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """loss = sum(losses) / denominator and, unless None, dlogits, of rows longer than a tile."""
    dtype: tl.constexpr = compute_dtype(logits.ptr.dtype.element_ty)
    IS_INDEX: tl.constexpr = not target.ptr.dtype.element_ty.is_floating()
    HAS_SMOOTHING: tl.constexpr = loss_options.label_smoothing is not None
    rows = row_block(tl.program_id(0), n_rows, logits, TILE)
    targets = load_targets(target, class_weight_ptr, rows, n_cols, loss_options.ignore_index, dtype)
    dloss, targets = load_dloss(denominator.dloss, targets, rows, n_rows, dtype)
    target_logits = load_target_logits(logits, target, rows, targets, dtype)
    needed_rows = targets.is_counted if TILE.rows < MIN_SHARED_ROWS else None
    denominator_value, gradient_scale = load_denominator(denominator, targets, dloss, dtype)
    # only a gradient needs the row again
    EVICTION: tl.constexpr = None if dlogits is None else "evict_last"

    sums = empty_row_sums(TILE.rows, N_PARTIALS, dtype)
    for start in range(0, n_cols + TILE.vec_size - 1, TILE.cols):
        tile = column_tile(start, rows, n_cols, TILE)
        is_edge = (start == 0) | (start + TILE.cols > n_cols)
        x = load_logits(logits, tile, is_edge, dtype, TILE, SOFTCAP, EVICTION, needed_rows)
        weights = load_class_weights(target, class_weight_ptr, tile, n_cols, TILE, dtype)
        sums = update_row_sums(sums, as_partials(x, N_PARTIALS), target, weights, HAS_SMOOTHING)
    stats = combine_row_sums(sums, target, targets, softcap(target_logits, SOFTCAP))
    losses, coefficients = apply_options(stats, targets, gradient_scale, loss_options, n_cols)
    # reduce first: the gradient needs the registers
    reduce_loss(losses, denominator_value, loss, rows, n_rows)

    if dlogits is not None:
        row_max = tl.where(targets.is_counted, stats.softmax.row_max, 0.0)
        target_value = target_gradient(
            targets, target_logits, stats.softmax.row_max, coefficients, SOFTCAP, HAS_SMOOTHING
        )
        # in place: all threads must have read their logits before any thread writes
        tl.debug_barrier()
        n_blocks = tl.cdiv(n_cols + TILE.vec_size - 1, TILE.cols)
        # in reverse order: the L2 cache most likely still holds the blocks read last
        for block in range(n_blocks):
            tile = column_tile((n_blocks - 1 - block) * TILE.cols, rows, n_cols, TILE)
            x = load_tile(logits, tile, TILE, "evict_first", needed_rows).to(dtype)
            if needed_rows is None:
                x = tl.where(targets.is_counted[:, None], x, 0.0)
            dx = coefficients.a[:, None] * exp(softcap(x, SOFTCAP) - row_max[:, None])
            weights = load_class_weights(target, class_weight_ptr, tile, n_cols, TILE, dtype)
            dx = subtract_class_gradient(dx, target, weights, coefficients, HAS_SMOOTHING)
            store_tile(dlogits, tile, dx * softcap_grad(x, SOFTCAP), TILE, "evict_first")
        if IS_INDEX:
            store_targets(dlogits, rows, targets, target_value)
