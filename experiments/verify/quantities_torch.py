"""All quantities of a case in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from experiments.verify.cases import Case, prefixed
from pnn_jax.pytorch.variables import Arrays


def torch_quantities(network, case: Case, dtype: str) -> Arrays:
    """As `jax_quantities`, from a PyTorch network.

    Args:
        network: holds the case's tensors; it is not changed.
        dtype: 'float32' or 'float64'.
    """
    network = copy.deepcopy(network).to(getattr(torch, dtype))
    images = lambda batch: torch.as_tensor(batch, dtype=getattr(torch, dtype))
    x, y = images(case.x), torch.as_tensor(case.y, dtype=torch.long)
    initial = copy.deepcopy(network.state_dict())

    def predict():
        network.eval()
        with torch.no_grad():
            return network(x)

    def learn(x, y):
        network.train()
        network.zero_grad()
        logits = network(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        loss.backward()
        return logits.detach(), loss.detach()

    result = {'eval_logits': predict()}
    if case.evaluation_only:
        return {key: value.numpy() for key, value in result.items()}
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    statistics = {name: b for name, b in network.named_buffers() if not name.endswith('.noise')}
    logits, loss = learn(x, y)
    result |= {'train_logits': logits, 'loss': loss}
    result |= prefixed('grad', {name: p.grad.clone() for name, p in parameters.items()})
    result |= prefixed('bn1', copy.deepcopy(statistics))
    result['eval_logits_bn1'] = predict()
    for name, settings in case.optimizers.items():
        network.load_state_dict(initial)
        optimizer = TORCH_OPTIMIZERS[name](torch.optim, list(parameters.values()), settings)
        losses = []
        for x_step, y_step in zip(case.xs, case.ys, strict=True):
            losses.append(learn(images(x_step), torch.as_tensor(y_step, dtype=torch.long))[1])
            optimizer.step()
        result |= prefixed(name, copy.deepcopy(parameters | statistics))
        result |= {f'{name}_losses': torch.stack(losses), f'{name}_eval_logits': predict()}
    return {key: value.detach().numpy() for key, value in result.items()}


TORCH_OPTIMIZERS: dict[str, Callable] = {
    'sgd': lambda optim, parameters, settings: optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    ),
    'adam': lambda optim, parameters, settings: optim.Adam(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    ),
    'rmsprop': lambda optim, parameters, settings: optim.RMSprop(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    ),
}
