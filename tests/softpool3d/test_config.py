import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from softpool3d.commented import comments_of
from softpool3d.config import Config, Section
from softpool3d.config_file import load_config, override_config
from softpool3d.errors import UsageError
from softpool3d.idle_keys import _BELONGS_TO, idle_keys

CONFIGS = Path(str(files("softpool3d.configs")))


def write(tmp_path, text, name="a.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_file_base_and_overrides(tmp_path):
    write(tmp_path, "seed: 1\noptim:\n  lr: 0.5\n  momentum: 0.5\n", "base.yaml")
    path = write(tmp_path, "base: base.yaml\noptim:\n  lr: 1e-3\n")
    config = load_config(
        path, ["optim.momentum=0.1", "model.pool.where=[head]", "data.dataset=folder", "data.root=/a b/c"]
    )
    assert (config.seed, config.optim.lr, config.optim.momentum) == (1, 0.001, 0.1)
    assert (config.model.pool.where, config.data.root) == (["head"], "/a b/c")


def test_what_is_printed_can_be_read_again(tmp_path):
    config = load_config("r3d_softpool", ["data.dataset=folder", "data.root=Grüße"])
    assert load_config(write(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize("name", ["r3d_softpool", "x3d_softpool", "configs/r3d_softpool.yaml"])
def test_shipped_configs(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_config(name).data.dataset == "motion"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  poool: 1\n", r"a.yaml:2: unknown key model.poool; did you mean model.pool\?"),
        ("lr: 1\n", r"a.yaml:1: unknown key lr; did you mean optim.lr\?"),
        ("optim:\n  lr: fast\n", r"a.yaml:2: optim.lr = 'fast': input should be a valid number"),
        ("\noptim:\n  lr: -1\n", r"a.yaml:3: optim.lr = -1: input should be greater than 0"),
        ("model:\n  pool:\n    kind: softmax\n", r"a.yaml:3: model.pool.kind = 'softmax': .*'soft', 'avg', 'max'"),
        ("model: 3\n", r"a.yaml:1: model is a group of keys"),
        ("data:\n  crop_size: 999\n", r"a.yaml:1: data: crop_size 999 does not fit into a short side of 128"),
        ("data:\n  split: [0.5, 0.5]\n", r"a.yaml:2: data.split"),
        ("a: [1\n", r"a.yaml:2: not valid YAML"),
        ("a: 1\na: 2\n", r"a.yaml:2: not valid YAML: key a stands here twice"),
        ("- 1\n", r"a.yaml:1: a config is a mapping"),
        ("base: absent.yaml\n", r"a.yaml:1: base: no file"),
        ("base: a.yaml\n", r"`base:` leads in a circle"),
        ("name: a/b\n", r"a.yaml:1: name = 'a/b'"),
        ("name: ..\n", r"a.yaml:1: name = '..'"),
        ("seed: -1\n", r"a.yaml:1: seed = -1: input should be greater than or equal to 0"),
        ("? [a, b]\n: 1\n", r"a.yaml:1: not valid YAML: a key has to be a word"),
        ("1: 1\n", r"a.yaml:1: not valid YAML: a key has to be a word"),
        ("model: &a\n  pool: *a\n", r"a.yaml: a config has no YAML aliases"),
        ("data:\n  split: [0.9, 0, 0.1]\n", r"a.yaml:1: data: split .* parts above 0 for train and val"),
    ],
)
def test_mistakes_name_file_line_and_key(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        load_config(write(tmp_path, text))


def test_mistakes_in_overrides():
    with pytest.raises(UsageError, match=r"override optim.lrr=1: unknown key optim.lrr; did you mean optim.lr\?"):
        load_config("r3d_softpool", ["optim.lrr=1"])
    with pytest.raises(UsageError, match="^override data.crop_size=999: data: crop_size 999 does not fit"):
        load_config("r3d_softpool", ["data.crop_size=999"])
    with pytest.raises(UsageError, match="'optim.lr' is not an override"):
        load_config("r3d_softpool", ["optim.lr"])


def test_mistakes_where_a_value_may_be_of_several_types():
    for override, message in {
        "optim.class_weights=balance": "optim.class_weights = 'balance': input should be 'balanced' or a valid list",
        "optim.class_weights=[1,-1]": "optim.class_weights = -1: input should be greater than or equal to 0",
        "optim.class_weights=[0,0]": "optim: class_weights are all 0: nothing would be learned",
        "model.pool.beta=learn": "model.pool.beta = 'learn': .* or 'learnable'",
    }.items():
        with pytest.raises(UsageError, match=f"^{re.escape(f'override {override}')}: {message}"):
            load_config("r3d_softpool", [override])


def test_no_such_config(tmp_path):
    with pytest.raises(UsageError, match="no config file nothing.yaml; those that come with softpool3d: r3d_softpool"):
        load_config("nothing.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        load_config(tmp_path)


def test_a_mistake_in_a_base_names_the_base(tmp_path):
    write(tmp_path, "seed: x\n", "base.yaml")
    with pytest.raises(UsageError, match=r"base.yaml:1: seed = 'x'"):
        load_config(write(tmp_path, "base: base.yaml\n"))


def test_what_looks_like_a_date_is_a_name():
    assert load_config("r3d_softpool", ["name=2024-13-45"]).name == "2024-13-45"


def test_the_root_does_not_depend_on_where_a_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("r3d_softpool", ["data.dataset=folder", "data.root=videos"]).data.root == str(
        tmp_path / "videos"
    )


def test_defaults_are_valid():
    assert Config().model.name == "r3d_18"


NAMES = ["1e-3", "2024", "0x10", "1_000", "12:30", "no", "true", ".inf", "2024-01-02", "=", "<<", "-", "a: b", "a #b"]
NAMES += ["'", '"', "[a]", "{a: b}", "*a", "&a", "!a", "%a", "@a", "null x", " a ", "1\n2"]


@pytest.mark.parametrize("name", NAMES)
def test_text_survives_being_saved_and_read(tmp_path, name):
    """Whatever YAML would take it for: names of runs, classes, weights, optimisers."""
    config = Config(name=name, output=name, device=name)
    config.model.weights = config.optim.name = name
    config.data.no_flip_classes, config.optim.freeze = [name, "b"], [name]
    config.optim.options = {"mode": name, "betas": [0.9, 1e-3]}
    (tmp_path / "a.yaml").write_bytes(config.to_yaml().encode())
    assert load_config(tmp_path / "a.yaml") == config


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("'", '"')])
def test_text_on_the_command_line_is_text(name):
    config = load_config("r3d_softpool", [f"name={name}", f"model.weights={name}", f"optim.name={name}"])
    assert (config.name, config.model.weights, config.optim.name) == (name, name, name)


def test_text_without_quotes_in_a_file_and_in_lists(tmp_path):
    text = "name: 2024\noutput: 1e-3\noptim:\n  freeze: [1e-3, on]\ndata:\n  root: null\n  no_flip_classes: [no, 7]\n"
    config = load_config(write(tmp_path, text), ["model.weights=null", "device='cpu'"])
    assert (config.name, config.output, config.data.root, config.model.weights) == ("2024", "1e-3", None, None)
    assert (config.optim.freeze, config.data.no_flip_classes, config.device) == (["1e-3", "on"], ["no", "7"], "cpu")
    assert load_config("r3d_softpool", ["data.no_flip_classes=[off, 1]"]).data.no_flip_classes == ["off", "1"]
    with pytest.raises(UsageError, match="override name=: name = None: input should be a valid string"):
        load_config("r3d_softpool", ["name="])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epochs=1"], "is longer; for a run so short, add optim.warmup_epochs=0$"),
        (
            ["optim.warmup_epochs=10.5"],
            "^override optim.warmup_epochs=10.5: .* train.epochs=10: optim.warmup",
        ),
        (
            ["optim.schedule=multistep", "optim.milestones=[5,10,20]"],
            r": \[10,20\] of optim.milestones would never be reached; for a run so short, add optim.milestones=\[5\]$",
        ),
        (
            ["optim.schedule=multistep", "optim.milestones=[20]", "train.epochs=1"],
            r"optim.warmup_epochs=2 is longer, and \[20\] of optim.milestones would never be reached; for a run so "
            r"short, add optim.warmup_epochs=0 optim.schedule=constant optim.milestones=\[\]$",
        ),
    ],
)
def test_a_schedule_has_to_fit_into_the_run(overrides, message):
    with pytest.raises(UsageError, match=message):
        load_config("r3d_softpool", overrides)
    instead = re.search("add (.*)[$]", message.replace("\\", ""))
    if instead:  # what is said can be typed
        load_config("r3d_softpool", [*overrides, *instead[1].split()])


def test_a_warm_up_of_the_whole_run_fits():
    load_config("r3d_softpool", ["train.epochs=2"])


def test_every_shipped_recipe_is_valid():
    for file in sorted(CONFIGS.rglob("*.yaml")):
        if file.parent.name != "study" or "variants" not in file.read_text():
            load_config(file)


def test_a_folder_for_a_data_set_that_has_none():
    """It was passed over, and a training of minutes on generated clips began."""
    with pytest.raises(UsageError, match=r"override data.root=videos: the data set motion .* add data.dataset=folder"):
        load_config("r3d_softpool", ["data.root=videos"])
    load_config("r3d_softpool", ["data.root=videos", "data.dataset=folder"])


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("pool.kind=max", "model.pool.kind"),
        ("pool=max", "model.pool.kind=max"),
        ("lr=0.1", "optim.lr"),
        ("learning_rate=0.1", "optim.lr"),
        ("epochs=3", "train.epochs"),
        ("batch_size=3", "train.batch_size"),
        ("batchsize=3", "train.batch_size"),
        ("data.class_weight=balanced", "optim.class_weights"),
        ("trian.epochs=3", "train.epochs"),
        ("optimizer.name=adamw", "optim.name"),
        ("modle.name=r3d_18", "model.name"),
        ("tests.batch_size=3", "test.batch_size"),
        ("optim.learning_rate=3", "optim.lr"),
        ("train.multigird.short_cycle=true", "train.multigrid.short_cycle"),
        ("data.frames=8", "data.num_frames"),
        ("dataset=folder", "data.dataset"),
    ],
)
def test_a_key_that_is_not_there_leads_to_the_one_that_is_meant(override, meant):
    with pytest.raises(UsageError, match="unknown key") as error:
        load_config("r3d_softpool", [override])
    assert str(error.value).endswith(f"; did you mean {meant}?")


def sections(model=Config):
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation)


@pytest.mark.parametrize("section", list(sections()))
def test_each_key_is_explained_in_one_or_two_sentences(section):
    """--print-config prints them."""
    assert section is Config or vars(section)["__doc__"]
    notes = comments_of(section)
    for key, field in section.model_fields.items():
        if field.annotation not in list(sections()):
            assert 5 < len(notes[key]) < 260, key


def test_a_key_like_no_other():
    with pytest.raises(UsageError, match="unknown key checkpoint.zzzzzz; known here: every_minutes$"):
        load_config("r3d_softpool", ["checkpoint.zzzzzz=1"])
    with pytest.raises(UsageError, match="unknown key pretrained; known here: name, output, seed, "):
        load_config("r3d_softpool", ["pretrained=true"])


def test_a_key_of_another_section_and_a_section_in_place_of_a_key():
    with pytest.raises(UsageError, match=r"unknown key data.class_weights; did you mean optim.class_weights\?"):
        load_config("r3d_softpool", ["data.class_weights=balanced"])
    with pytest.raises(UsageError, match=r"model.pool is a group of keys \(kind, .*did you mean model.pool.kind=max\?"):
        load_config("r3d_softpool", ["model.pool=max"])
    with pytest.raises(UsageError, match="train is a group of keys .*; name one of them, as in train.epochs=..."):
        load_config("r3d_softpool", ["train=fast"])


@pytest.mark.parametrize("key", list(_BELONGS_TO))
def test_what_has_no_effect_is_said(key):
    """Each key by itself: with a value of its own it is idle or not, as what it belongs to says."""
    what, belongs = _BELONGS_TO[key]
    others = {
        "model.pool.kind": "max",
        "model.pool.beta": 2,
        "data.root": "/x",
        "data.sampling": "uniform",
        "data.sample_by": "time",
        "data.decoder": "decord",
        "data.max_missing": 0.5,
        "optim.cosine_from_start": True,
        "test.average": "logits",
        "model.pool.beta_start": 4,
        "data.path_prefix": "/x",
        "data.split": [0.5, 0.3, 0.2],
        "data.motion_clips": [8, 8, 8],
        "data.target_fps": 12,
        "data.jitter": 0.5,
        "optim.warmup_start": 0.5,
        "data.short_clip": "hold",
        "data.no_flip_classes": [],
        "data.augment.inverse_scale": True,
        "data.augment.area": [0.5, 1.0],
        "data.augment.ratio": [0.5, 2.0],
        "data.official_split": 2,
        "optim.momentum": 0.5,
        "data.test_spacing": "ends",
        "optim.nesterov": False,
        "optim.gamma": 0.5,
        "optim.final_lr": 0.5,
        "train.multigrid.short_crops": [0.25],
        "train.multigrid.long_shapes": [[0.5, 0.5]],
    }
    idle = ["model.pool.kind=max", "data.dataset=kinetics400", "data.sampling=uniform", "data.flip=false"]
    idle += ["optim.name=adamw", "optim.schedule=constant"]
    more = {
        "model.pool.kind": ["model.pool.where=[]"],
        "data.augment.inverse_scale": ["data.augment.crop=area"],
        "data.prefetch": ["data.num_workers=0"],
        "optim.cosine_from_start": ["optim.schedule=cosine"],
        **dict.fromkeys(
            ["data.sampling", "data.sample_by", "data.decoder", "data.decode_timeout_s", "data.max_missing"],
            ["data.dataset=pictures", "data.num_frames=1"],
        ),
    }
    default = Config().flat()[key]
    value = others[key] if key in others else default + 1
    config = override_config(Config(), [*idle, *more.get(key, ())])
    if key == "data.root":  # an error as an override, and said of a configuration that was made in Python
        config = Config(data=config.data.model_copy(update={"dataset": "motion", "root": value}))
    else:
        config = override_config(config, [f"{key}={json.dumps(value)}"])
    said = idle_keys(config)
    assert not belongs(config)
    assert [sentence for sentence in said if sentence.startswith(f"{key}=")] and what in "".join(said)


@pytest.mark.parametrize(
    "override", ["data.sampling_rate=2", "data.target_fps=12.5", "data.jitter=0.5", "data.short_clip=hold",
                 "test.num_clips=10", "data.test_spacing=ends"]
)  # fmt: skip
def test_keys_of_clips_have_no_effect_on_pictures(override):
    config = override_config(Config(), ["data.dataset=pictures", "data.num_frames=1", override])
    assert [sentence.partition(" ")[0] for sentence in idle_keys(config)] == [override]


def test_keys_of_several_processes_have_no_effect_in_one():
    config = override_config(Config(), ["train.norm=sync", "train.shard=true"])
    several = "has no effect: it belongs to a training of several processes, by torchrun"
    assert idle_keys(config, alone=True) == [f"train.shard=True {several}", f"train.norm=sync {several}"]
    assert not idle_keys(config)
    assert not idle_keys(override_config(Config(), ["train.norm=split"]), alone=True)


def test_a_network_without_batch_norm():
    config = override_config(Config(), ["model.name=mvit_v2_s", "train.norm=split", "train.precise_norm=5"])
    assert not idle_keys(config)
    none = "has no effect: it belongs to networks with batch norm, and mvit_v2_s has none"
    assert idle_keys(config, has_norms=False) == [f"train.norm=split {none}", f"train.precise_norm=5 {none}"]


def test_nothing_is_said_of_what_has_an_effect():
    used = ["model.pool.beta=2", "optim.momentum=0.5", "data.sampling_rate=3", "optim.final_lr=0.1", "data.jitter=0.5"]
    assert idle_keys(override_config(Config(), used)) == []
