"""Integer counts and a loss sum: the only thing an accuracy is ever computed from."""

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class Metrics:
    """Sums over examples; merged by addition and divided once, at the end.

    Attributes:
        correct: int32 [], examples whose largest logit is the label's.
        count: int32 [], examples.
        loss: float32 [], sum of the examples' cross entropies.
        nonfinite: int32 [], examples with a logit that is not finite; they count as wrong and add no loss.
    """

    correct: jax.Array
    count: jax.Array
    loss: jax.Array
    nonfinite: jax.Array

    @classmethod
    def empty(cls) -> 'Metrics':
        # An array for each field, because donating one buffer twice is an error.
        zero = lambda dtype=jnp.int32: jnp.zeros((), dtype)
        return cls(correct=zero(), count=zero(), loss=zero(jnp.float32), nonfinite=zero())

    def merge(self, other: 'Metrics') -> 'Metrics':
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> dict[str, float | int]:
        """Accuracy (a fraction), mean loss (nats) and the counts behind them."""
        correct, count, nonfinite = int(self.correct), int(self.count), int(self.nonfinite)
        accuracy = correct / count if count else float('nan')
        finite = count - nonfinite
        loss = float(self.loss) / finite if finite else float('nan')
        return {'correct': correct, 'count': count, 'accuracy': accuracy, 'loss': loss, 'nonfinite': nonfinite}


@flax.struct.dataclass
class ExampleMetrics:
    """The outcome of every example of a batch, each [b]. At padding all are False or 0, and `predicted` is -1.

    Attributes:
        correct: bool, the largest logit is the label's; of equal ones the first counts, as in torch.
        top5: bool, the label is among the five largest.
        loss: float32, cross entropy.
        finite: bool, all logits are.
        valid: bool, not padding.
        predicted: int32, the class with the largest logit, of equal ones the first; -1 where a logit is not finite.
        confidence: float32, the softmax probability of that class; 0 where a logit is not finite.
    """

    correct: jax.Array
    top5: jax.Array
    loss: jax.Array
    finite: jax.Array
    valid: jax.Array
    predicted: jax.Array
    confidence: jax.Array

    def sum(self) -> Metrics:
        return Metrics(
            correct=self.correct.sum(dtype=jnp.int32),
            count=self.valid.sum(dtype=jnp.int32),
            loss=self.loss.sum(dtype=jnp.float32),
            nonfinite=(self.valid & ~self.finite).sum(dtype=jnp.int32),
        )


def example_metrics(logits: jax.Array, labels: jax.Array, batch_mask: jax.Array) -> ExampleMetrics:
    """Compares logits with labels, example by example, in float32 or wider.

    A label outside 0..classes-1 counts as wrong; it adds 0 to the loss but 1 to the count.

    Args:
        logits: [b, classes].
        labels: int [b].
        batch_mask: bool [b], False at padding, which may hold anything.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    finite = jnp.isfinite(logits).all(-1) & batch_mask
    logits = jnp.where(finite[:, None], logits, 0.0)  # a product with the mask would not do: 0 * nan is nan
    num_classes = logits.shape[-1]
    is_class = (labels >= 0) & (labels < num_classes)
    labels = jnp.where(is_class, labels, 0)
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(num_classes)[None]
    ahead = (logits > of_label) | ((logits == of_label) & (classes < labels[:, None]))
    rank = ahead.sum(-1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return ExampleMetrics(
        correct=(rank == 0) & finite & is_class,
        top5=(rank < 5) & finite & is_class,
        loss=jnp.where(finite & is_class, losses, 0.0).astype(jnp.float32),
        finite=finite,
        valid=batch_mask,
        predicted=jnp.where(finite, logits.argmax(-1), -1),
        confidence=jnp.where(finite, jax.nn.softmax(logits).max(-1), 0.0).astype(jnp.float32),
    )
