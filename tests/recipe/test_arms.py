import pytest
from known import load_recipe

from w2skd.errors import RecipeError
from w2skd.recipe.arms import TEACHER
from w2skd.recipe.load import dump_recipe, validate_recipe
from w2skd.recipe.schema import Recipe
from w2skd.recipe.yaml_text import parse_yaml
from w2skd.tasks.catalog import recipe_types

FOUR = (
    "{plain: {help: none}, w2s: {help: distill}, grown: {help: grow, set: {train.optimizer.lr: 0.2}, note: larger}, "
    "both: {help: [grow, distill], set: {distill: {hold: 1ep}, train: {steps: 7}}}}"
)


def with_arms(arms: str, *more: str) -> Recipe:
    return load_recipe("demo", ["report.thresholds=[teacher]", f"arms={arms}", *more])


def test_without_arms_there_are_the_student_alone_and_the_distilled_one() -> None:
    recipe = load_recipe("demo", [])
    assert list(recipe.arms) == ["baseline", "w2s"]
    assert recipe.reference == "baseline"
    assert not recipe.helps("baseline")
    assert recipe.helps("w2s", "distill")
    assert not recipe.helps("w2s", "grow")
    assert not recipe.helps(TEACHER)


def test_an_arm_changes_only_what_it_sets() -> None:
    recipe = with_arms(FOUR)
    assert recipe.for_arm("plain") is recipe
    assert recipe.for_arm("grown").train.optimizer.lr == 0.2
    assert recipe.for_arm("grown").train.epochs == recipe.train.epochs
    both = recipe.for_arm("both")
    assert (both.train.steps, both.train.epochs) == (7, None)
    assert str(both.distill.hold) == "1ep"
    assert both.distill.weight == recipe.distill.weight
    assert recipe.helps("both", "grow")
    assert recipe.helps("both", "distill")
    assert recipe.for_arm(TEACHER) is recipe


def test_arms_survive_being_written_to_a_file() -> None:
    recipe = with_arms(FOUR)
    again = validate_recipe(parse_yaml(dump_recipe(recipe), "it"), "it", recipe_types())
    assert again == recipe
    for arm in recipe.arms:
        resolved = recipe.for_arm(arm)
        assert resolved.for_arm(arm) == resolved


@pytest.mark.parametrize(
    ("arms", "problem"),
    [
        ("{}", "arms: define at least one arm, or omit the section"),
        ("[plain]", "arms: should be a section with keys of its own, not ['plain']"),
        ("{teacher: {help: none}}", "arms.teacher: not a valid name"),
        ("{a/b: {help: none}}", "arms.a/b: not a valid name"),
        ("{a: {help: dist}}", "arms.a.help: 'dist' is not a kind of help: use none, one of distill, grow, or a list"),
        ("{a: {help: [none, grow]}}", "arms.a.help: 'none' is not a kind of help"),
        ("{a: {help: [grow, grow]}}", "arms.a: help: each kind once"),
        ("{a: {help: none}, b: {help: none}}", "arms.b: has the same help and set as a: change one of them"),
        ("{a: {hlp: none}}", "arms.a.hlp: unknown key (did you mean 'help'?)"),
        ("{a: {set: {train.optimzer.lr: 1.0}}}", "arms.a.set.train.optimzer: unknown key (did you mean 'optimizer'?)"),
        ("{a: {set: {distill.hold: 1ep}}}", "arms.a: set: distill.hold has no effect without help: distill"),
        ("{a: {set: {teacher.precision: bf16}}}", "arms.a: set: teacher.precision has no effect with help: none"),
        ("{a: {set: {data.root: x}}}", "arms.a: set: data.root must be the same in all arms"),
        ("{a: {set: {data: {eval_examples: 9}}}}", "arms.a: set: data.eval_examples must be the same in all arms"),
        ("{a: {set: {train: {batch_size: 9}}}}", "arms.a: set: train.batch_size must be the same in all arms"),
        ("{a: {set: {seed: 9}}}", "arms.a: set: seed must be the same in all arms"),
    ],
)
def test_contradictions_are_refused(arms: str, problem: str) -> None:
    with pytest.raises(RecipeError) as raised:
        with_arms(arms)
    assert problem in str(raised.value)


def test_an_arm_must_not_change_how_models_are_scored() -> None:
    with pytest.raises(RecipeError, match=r"arms\.a\.set: \w+\.\w+ changes how models are scored; set it for all arms"):
        load_recipe("diffusion_demo", ["report.thresholds=[1.0]", "arms={a: {set: {fid.samples: 9}}}"])


def test_a_threshold_may_be_a_share_of_any_arm() -> None:
    recipe = with_arms(FOUR, "report.thresholds=[0.9*plain, 0.5*grown, 0.95*teacher]")
    assert [threshold.of for threshold in recipe.report.thresholds] == ["plain", "grown", "teacher"]
    with pytest.raises(RecipeError, match=r"0\.9\*plan: unknown arm plan \(did you mean 'plain'\?\)"):
        with_arms(FOUR, "report.thresholds=[0.9*plan]")


def test_lengths_scale_the_schedule_of_every_arm() -> None:
    recipe = with_arms(FOUR, "lengths=[0.25, 0.5, 1]")
    assert recipe.train.epochs is not None
    assert recipe.for_arm("plain", 0.25).train.epochs == recipe.train.epochs / 4
    assert recipe.for_arm("both", 0.5).train.steps == 4
    assert recipe.for_arm(TEACHER, 0.5) is recipe


@pytest.mark.parametrize("lengths", ["[0.5]", "[1, 1.0]", "[1, 2]", "[0, 1]"])
def test_unusable_lengths_are_refused(lengths: str) -> None:
    with pytest.raises(RecipeError, match="lengths"):
        with_arms(FOUR, f"lengths={lengths}")


TWO = "{a: {help: none}, b: {help: distill}}"
WSD = "train.lr_schedule={name: wsd, warmup: 1ep}"


def test_lengths_that_share_a_trunk_need_absolute_durations() -> None:
    with pytest.raises(RecipeError) as raised:
        with_arms(TWO, WSD, "lengths=[0.5, 1]", "distill={hold: 0.5run, decay: 1ep}")
    assert "arms.b: distill.hold: 0.5run differs between lengths, which share steps" in str(raised.value)
    assert "arms.a" not in str(raised.value)
    with_arms(TWO, WSD, "distill={hold: 0.5run, decay: 1ep}")
    with pytest.raises(RecipeError, match=r"warmup: 0\.1run differs between lengths"):
        with_arms(FOUR, "train.lr_schedule={name: wsd, warmup: 0.1run}")
