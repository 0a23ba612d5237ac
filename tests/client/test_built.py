import pytest
from torch import nn

from fl.client.built import TrainingError, build_model, require_settings
from fl.config import ModelConfigs, TrainConfigs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def Net():\n    raise OSError('no weights')\n", "OSError: no weights"),
        ("def Net():\n    return 3\n", "no torch.nn.Module"),
    ],
)
def test_a_model_that_does_not_build_says_why(site_code, text, expected):
    (site_code / "model.py").write_text(text)
    with pytest.raises(TrainingError, match=expected):
        build_model(ModelConfigs(model_path="model.py", model_name="Net"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optim": "Adam", "optim_args": {"betas": [0.9]}}, "optim_args do not fit Adam"),
        ({"optim": "Adam", "optim_args": {"fused": True, "foreach": True}}, "do not fit Adam"),
        ({"lr_scheduler": "LRScheduler"}, "lr_scheduler_args do not fit LRScheduler"),
    ],
)
def test_whatever_torch_raises_of_settings_is_named(settings, said):
    with pytest.raises(TrainingError, match=said):
        require_settings(nn.Linear(4, 2), TrainConfigs(**settings))
