"""The harness itself: what it must say of anonymisers whose worth is known beforehand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from anonymize.eval import attacks, learned, metadata
from anonymize.eval.attacks import Attack
from anonymize.eval.cache import Cache
from anonymize.eval.context import context
from anonymize.eval.links import link, read_table
from anonymize.eval.memory import memory
from anonymize.eval.report import risks, verdict
from anonymize.eval.risk import TOO_WEAK, Outcome, judged, measure
from anonymize.eval.testing import DIMS, EACH, PEOPLE, Staged, staged
from anonymize.eval.trial import Trial, load
from anonymize.eval.unlink import cross_key
from conftest import save

from anonymize.embedders import DlibEmbedder
from anonymize.errors import ConfigError
from anonymize.images import encode, read
from anonymize.record import Face, Floats, Pixels

FAKE = Staged()


def embeddings(seed: int = 0, noise: float = 0.25, per_picture: bool = False) -> Floats:
    """(PEOPLE * EACH, DIMS): a person each, a common mean as dlib's have, noise per picture."""
    rng = np.random.default_rng(seed)
    count = PEOPLE * EACH if per_picture else PEOPLE
    who = rng.normal(size=(count, DIMS)) if per_picture else rng.normal(size=(PEOPLE, DIMS))
    who = who if per_picture else np.repeat(who, EACH, axis=0)
    return (who + noise * rng.normal(size=who.shape) + 3).astype(np.float32)


def outcomes(trial: Trial, *names: Attack) -> dict[str, Outcome]:
    found = [measure(s) for way in (attacks.oo, *names) for s in way(trial, FAKE)]  # type: ignore
    return {outcome.title: outcome for outcome in judged(found)}


NAIVE = (attacks.oa, attacks.ao, learned.linear, attacks.negation, attacks.set_averaging)


def test_unchanged_pictures_fall_to_every_attack_as_originals_do() -> None:
    o = embeddings()
    found = outcomes(staged(o, o), attacks.oa, attacks.ao, learned.linear, attacks.set_averaging)
    assert found["oo"].rank1.value > 0.95
    assert found["oa"].rank1.value == found["oo"].rank1.value
    assert found["oa"].tar == found["oo"].tar
    assert found["ao"].rank1.value > 0.95
    assert found["semi-informed (linear)"].rank1.value > 0.9
    assert found["set-averaging (all)"].rank1.value >= found["oa"].rank1.value
    assert verdict(list(found.values()))["level"] == "broken"


@pytest.mark.parametrize("seed", range(4))
def test_strangers_sit_at_chance(seed: int) -> None:
    trial = staged(embeddings(), embeddings(100 + seed), seed=seed)
    found = outcomes(trial, *NAIVE)
    for outcome in found.values():
        if outcome.attack != "oo":
            assert outcome.rank1.low <= outcome.chance <= outcome.rank1.high, outcome.title
            # what is left over its null at chance shrinks with the number of mated scores
            assert outcome.d_sys is None or abs(outcome.d_sys) < 0.25
    assert found["oa"].risk.low <= 0


def test_the_semi_informed_attacker_reads_what_the_naive_one_cannot() -> None:
    """A fixed rotation of embeddings hides people from a pretrained recogniser only."""
    o = embeddings()
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(DIMS, DIMS)))[0].astype(np.float32)
    found = outcomes(staged(o, (o - 3) @ turn + 3), attacks.oa, learned.linear)
    assert found["oa"].rank1.value < 0.2
    assert found["semi-informed (linear)"].rank1.value > 0.6
    assert found["semi-informed (linear)"].risk.low > 0.3
    assert "beyond the control" in found["semi-informed (linear)"].verdict


def test_the_opposite_of_the_source_is_found_by_negation() -> None:
    o = embeddings()
    found = outcomes(staged(o, 6 - o), attacks.oa, attacks.negation)
    assert found["oa"].rank1.value == 0
    assert found["negation"].rank1.value > 0.9
    assert found["negation"].risk.low > 0.5


def test_noise_per_picture_averages_out() -> None:
    o, rng = embeddings(), np.random.default_rng(1)
    noisy = (o + rng.normal(0, 2.2, o.shape)).astype(np.float32)
    found = outcomes(staged(o, noisy), attacks.oa, attacks.set_averaging)
    assert found["set-averaging (all)"].rank1.value > found["oa"].rank1.value + 0.05


def test_coarse_attributes_explain_the_control_and_no_more() -> None:
    """One that keeps the cell is found within the cell: above chance, not above control."""
    rng = np.random.default_rng(0)
    cell = rng.integers(4, size=PEOPLE)
    centres = 3 * rng.normal(size=(4, DIMS))
    o = np.repeat(centres[cell] + rng.normal(size=(PEOPLE, DIMS)), EACH, 0)
    a = np.repeat(centres[cell] + rng.normal(size=(PEOPLE, DIMS)), EACH, 0)
    o, a = (x + 0.2 * rng.normal(size=x.shape) for x in (o, a))
    (found,) = [
        x
        for x in outcomes(staged(o.astype(np.float32), a.astype(np.float32)), attacks.oa).values()
        if x.attack == "oa"
    ]
    assert found.rank1.value > 1.5 * found.chance
    assert found.risk.low <= 0


# The mistakes of published toolboxes, each in turn.


def test_consistency_among_outputs_is_no_privacy_number() -> None:
    """Mistake 1: strangers who are always the same strangers match each other perfectly."""
    from anonymize.eval.utility import consistency

    trial = staged(embeddings(), embeddings(7))
    found = outcomes(trial, attacks.oa)
    same, use = consistency(trial, FAKE, found["oo"])  # type: ignore[arg-type]
    assert same.rank1.value > 0.95
    assert use.name.startswith("same-key")
    assert same not in risks([*found.values(), same])
    assert verdict([*found.values(), same])["level"] == "held"


def test_no_score_rewards_noise_over_consistency() -> None:
    """Mistake 3: a new face in every picture is as private, but of no use."""
    from anonymize.eval.utility import consistency

    steady, noise = (
        staged(embeddings(), embeddings(7)),
        staged(embeddings(), embeddings(7, 1, True)),
    )
    risk, use = [], []
    for trial in (steady, noise):
        found = outcomes(trial, attacks.oa)
        risk.append(found["oa"].risk)
        use.append(consistency(trial, FAKE, found["oo"])[1].value)  # type: ignore[arg-type]
    assert max(r.low for r in risk) <= 0
    assert use[0] is not None
    assert use[1] is not None
    assert use[0].low > 0.9 > 0.2 > use[1].high


def test_thresholds_come_from_the_attackers_split_alone() -> None:
    """Mistake 4: scores of the evaluation's people must not move them."""
    o, a = embeddings(), embeddings(7)
    first = staged(o, a)
    mine = first.attacker[first.o.people]
    other = np.where(mine[:, None], o, embeddings(9))
    second = staged(other.astype(np.float32), a)
    for attack in (attacks.oa, attacks.oo):
        (one,), (two,) = attack(first, FAKE), attack(second, FAKE)  # type: ignore[arg-type]
        assert np.allclose(one.nonmated, two.nonmated)
        assert len(one.nonmated) > 1000


def test_pictures_without_a_face_stay_in_and_count_as_misses() -> None:
    """Mistake 5."""
    o = embeddings()
    found = np.arange(len(o)) % 2 == 0
    outcome = outcomes(staged(o, o, found), attacks.oa)["oa"]
    assert outcome.mated == PEOPLE // 2 * EACH // 2
    assert outcome.lost == outcome.mated // 2
    assert outcome.rank1.value == pytest.approx(0.5, abs=0.03)
    assert outcome.tar["0.01"].value == pytest.approx(0.5, abs=0.05)


def test_originals_that_slip_through_are_noticed() -> None:
    """Mistake 8: a tool that writes the original out where it found no face."""
    o, a = embeddings(), embeddings(7)
    slipped = np.arange(len(o)) % 5 == 0
    found = outcomes(staged(o, np.where(slipped[:, None], o, a)), attacks.oa)["oa"]
    assert found.risk.low > 0.05


def test_a_weak_recogniser_proves_nothing() -> None:
    noise = embeddings(0, 30)
    found = outcomes(staged(noise, embeddings(7, 30)), attacks.oa)
    assert all(o.verdict.startswith(TOO_WEAK) for o in found.values())
    assert verdict(list(found.values()))["level"] == "void"


def test_an_attack_that_cannot_learn_says_so() -> None:
    """New faces in every picture teach the attacker nothing, not even of its own people."""
    found = outcomes(staged(embeddings(), embeddings(7, 1, True)), learned.linear)
    outcome = found["semi-informed (linear)"]
    assert outcome.verdict.startswith(TOO_WEAK)
    assert outcome.evidence is not None


def test_releases_under_two_keys() -> None:
    o = embeddings()
    first, second, third = (staged(o, embeddings(seed)) for seed in (7, 8, 9))
    found = [measure(s) for s in cross_key(first, second, third, FAKE)]  # type: ignore[arg-type]
    assert [o.variant for o in found] == ["pretrained", "fitted"]
    assert all(o.rank1.low <= o.chance <= o.rank1.high for o in found)
    (same, _) = cross_key(first, staged(o, embeddings(7)), third, FAKE)  # type: ignore[arg-type]
    assert measure(same).rank1.value > 0.95


def test_numbers_have_intervals_around_them() -> None:
    """Mistake 7."""
    for outcome in outcomes(staged(embeddings(), embeddings(7)), *NAIVE).values():
        for value in (outcome.rank1, outcome.control, outcome.risk, *outcome.tar.values()):
            assert value.low <= value.value <= value.high


# From here on with pictures.


class Fixed:
    """A detector that knows where faces are drawn: at the brightest pixel."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Sequence[Pixels]) -> list[tuple[Face, ...]]:
        self.seen += len(images)
        return [self._one(image) for image in images]

    def _one(self, image: Pixels) -> tuple[Face, ...]:
        y, x = np.unravel_index(int(image[..., 0].argmax()), image.shape[:2])
        if image[y, x, 0] < 200:
            return ()
        around = np.array([[-5, -5], [5, -5], [0, 0], [-4, 6], [4, 6]], np.float32)
        marks = around + np.array([x, y], np.float32)
        return (Face(np.array([x - 9, y - 9, x + 9, y + 9], np.float32), 0.99, marks),)


def drawn(folder: Path, shift: int, lost: Callable[[int], bool] = lambda i: False) -> None:
    for person in range(10):
        for index in range(4):
            image = np.full((60, 60, 3), 10 * person, np.uint8)
            if not lost(person * 4 + index):
                image[20 + person + shift, 30 + index] = 255
            save(folder / f"person{person}" / f"{index}.png", image)


def test_faces_are_detected_afresh_on_outputs(tmp_path: Path) -> None:
    """Mistake 2: landmarks of the original would be wrong by the shift, and nobody would know."""
    drawn(tmp_path / "o", 0)
    drawn(tmp_path / "a", 7)
    detector = Fixed()
    links = link(tmp_path / "o", tmp_path / "a", None)
    trial = load(tmp_path / "o", tmp_path / "a", links, detector=detector)
    assert detector.seen == 80
    moved = trial.a.landmarks - trial.o.landmarks[trial.a.links]
    assert np.allclose(moved, [0, 7])


def test_a_lost_face_is_expected_where_faces_usually_are(tmp_path: Path) -> None:
    drawn(tmp_path / "o", 0)
    drawn(tmp_path / "a", 0, lambda i: i % 4 == 3)
    links = link(tmp_path / "o", tmp_path / "a", None)
    trial = load(tmp_path / "o", tmp_path / "a", links, detector=Fixed())
    assert (~trial.a.found).sum() == 10
    assert trial.a.landmarks[~trial.a.found].min() > 10


def test_splits_are_disjoint_and_sources_never_enrolled(tmp_path: Path) -> None:
    drawn(tmp_path / "o", 0)
    drawn(tmp_path / "a", 0)
    links = link(tmp_path / "o", tmp_path / "a", None)
    trial = load(tmp_path / "o", tmp_path / "a", links, detector=Fixed(), seed=3)
    assert trial.attacker.sum() == 5
    probes = trial.rows("a", attacker=False, enrolled=False)
    gallery = trial.rows("o", attacker=False, enrolled=True)
    assert not set(trial.a.links[probes]) & set(gallery)
    assert set(trial.a.people[probes]) == set(trial.o.people[gallery])
    assert not set(trial.o.people[gallery]) & set(trial.o.people[trial.rows("o", attacker=True)])
    again = load(tmp_path / "o", tmp_path / "a", links[::-1], detector=Fixed(), seed=3)
    assert again.o.paths == trial.o.paths
    assert (again.attacker == trial.attacker).all()
    assert (again.enrolled == trial.enrolled).all()
    other = load(tmp_path / "o", tmp_path / "a", links, detector=Fixed(), seed=4)
    assert (other.attacker != trial.attacker).any() or (other.enrolled != trial.enrolled).any()


def test_bad_links_are_refused(tmp_path: Path) -> None:
    drawn(tmp_path / "o", 0)
    table = tmp_path / "links.csv"
    for text, message in (
        ("a,b\n1,2\n", "source,output"),
        ("source,output\nx.png,y.png\nx.png,z.png\n", "twice"),
        ("source,output\nperson0/0.png,nowhere.png\n", "not there"),
    ):
        table.write_text(text)
        with pytest.raises(ConfigError, match=message):
            link(tmp_path / "o", tmp_path / "o", read_table(table))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="nothing links"):
        link(tmp_path / "o", tmp_path / "empty", None)
    with pytest.raises(ConfigError, match="at least 8"):
        load(tmp_path / "o", tmp_path / "o", link(tmp_path / "o", tmp_path / "o", None)[:8])


def test_the_cache_answers_by_content(tmp_path: Path) -> None:
    drawn(tmp_path / "o", 0)
    kept, detector = tmp_path / "private" / "cache.sqlite", Fixed()
    for _ in range(2):
        cache = Cache(kept)
        links = link(tmp_path / "o", tmp_path / "o", None)
        load(tmp_path / "o", tmp_path / "o", links, cache=cache, detector=detector)
        cache.close()
    assert detector.seen == 40
    assert kept.parent.stat().st_mode & 0o077 == 0


def joined(trial: Trial) -> dict[str, Outcome]:
    return {search.variant: measure(search) for search in metadata.join(trial)}


def test_metadata_gives_away_copies_and_not_a_shuffled_release(tmp_path: Path) -> None:
    drawn(tmp_path / "o", 0)
    drawn(tmp_path / "same", 0)
    links = link(tmp_path / "o", tmp_path / "same", None)
    leaky = joined(load(tmp_path / "o", tmp_path / "same", links, detector=Fixed()))
    assert leaky["name"].rank1.value == leaky["order"].rank1.value == 1
    rng, table = np.random.default_rng(0), {}
    for index, item in enumerate(rng.permutation([item.source for item in links])):
        table[str(item)] = f"{index:04}.png"
        save(tmp_path / "new" / f"{index:04}.png", read(tmp_path / "o" / str(item)))
    links = link(tmp_path / "o", tmp_path / "new", table)
    sound = joined(load(tmp_path / "o", tmp_path / "new", links, detector=Fixed()))
    for variant in ("name", "size", "exif"):
        assert sound[variant].rank1.value == pytest.approx(sound[variant].chance)
    assert sound["order"].risk.low <= 0


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, people: Path) -> Trial:
    """Sample people, blurred a little: real detectors and recognisers."""
    folder = tmp_path_factory.mktemp("blurred")
    for path in sorted(people.glob("*/*.jpg")):
        soft = cv2.GaussianBlur(read(path), (0, 0), 3.0)
        save(folder / path.parent.name / path.name, np.asarray(soft, np.uint8), "jpg")
    return load(people, folder, link(people, folder, None))


def test_every_attack_runs_on_pictures(crowd: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "STEPS", 20)
    embedder = DlibEmbedder()
    ways = (attacks.oo, attacks.oa, learned.linear, learned.tuned, learned.reverse, context)
    found = {o.title: o for o in judged([measure(s) for way in ways for s in way(crowd, embedder)])}
    assert found["oo"].rank1.value > 0.9
    assert found["oa"].rank1.value > 3 * found["oa"].chance  # a weak blur hides little
    assert found["semi-informed (fine-tuned)"].evidence is not None
    assert {"context (face chip)", "context (head)", "context (thumbnail)"} <= set(found)


def test_memory_finds_training_faces(crowd: Trial, people: Path, tmp_path: Path) -> None:
    """Outputs that repeat the training set, and a training set of the same people's other side."""
    embedder = DlibEmbedder()
    copied = replace(crowd, a=crowd.o)
    copied._views.clear()
    folder = tmp_path / "training"
    rows = crowd.rows("o", attacker=False)
    for row in rows:
        save(folder / f"{row}.jpg", read(crowd.o.folder / crowd.o.paths[row]), "jpg")
    outcome = memory(copied, embedder, folder)
    assert outcome.rank1.value > 0.9
    save(tmp_path / "none" / "grey.png", np.full((50, 50, 3), 128, np.uint8))
    with pytest.raises(ConfigError, match="no face"):
        memory(crowd, embedder, tmp_path / "none")


@pytest.mark.photos
def test_the_informed_attacker_reads_a_weak_blur_of_photographs(lfw: Path, tmp_path: Path) -> None:
    able = [p for p in sorted(lfw.iterdir()) if p.is_dir() and len(list(p.glob("*.jpg"))) >= 4]
    for person in able[:60]:
        for path in sorted(person.glob("*.jpg"))[:4]:
            image = read(path)
            save(tmp_path / "o" / person.name / path.name, image, "jpg")
            soft = np.asarray(cv2.GaussianBlur(image, (0, 0), 6.0), np.uint8)
            target = tmp_path / "a" / person.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encode(soft))
    links = link(tmp_path / "o", tmp_path / "a", None)
    trial, embedder = load(tmp_path / "o", tmp_path / "a", links), DlibEmbedder()
    ways = (attacks.oo, attacks.oa, learned.linear)
    found = {o.title: o for o in judged([measure(s) for way in ways for s in way(trial, embedder)])}
    assert found["oo"].rank1.value > 0.9
    assert found["semi-informed (linear)"].rank1.value > found["oa"].rank1.value
    assert found["semi-informed (linear)"].risk.low > 0


def test_unreadable_pictures_are_counted_and_find_nobody(tmp_path: Path) -> None:
    drawn(tmp_path / "o", 0)
    drawn(tmp_path / "a", 0)
    (tmp_path / "o" / "person0" / "0.png").write_bytes(b"cut short")
    (tmp_path / "a" / "person1" / "1.png").write_bytes(b"")
    links = link(tmp_path / "o", tmp_path / "a", None)
    trial = load(tmp_path / "o", tmp_path / "a", links, detector=Fixed())
    assert (~trial.o.readable).sum() == (~trial.a.readable).sum() == 1
    assert not trial.o.found[~trial.o.readable].any()
    assert trial.a.chip(int(np.nonzero(~trial.a.readable)[0][0])).shape == (150, 150, 3)


def test_people_with_one_output_are_probes_and_two_give_a_gallery(tmp_path: Path) -> None:
    drawn(tmp_path / "o", 0)
    for published in (1, 2):
        folder = tmp_path / f"a{published}"
        for path in sorted((tmp_path / "o").glob("*/*.png")):
            if int(path.stem) < published:
                save(folder / path.parent.name / path.name, read(path))
        links = link(tmp_path / "o", folder, None)
        trial = load(tmp_path / "o", folder, links, detector=Fixed())
        enrolled = trial.enrolled[trial.a.links]
        for person in range(10):
            mine = enrolled[trial.a.people == person]
            assert (~mine).any()
            assert mine.any() == (published == 2)


def test_a_release_without_a_face_is_measured_as_far_as_it_goes(tmp_path: Path) -> None:
    from anonymize.eval.harness import Plan, evaluate
    from anonymize.eval.report import build

    drawn(tmp_path / "o", 0)
    drawn(tmp_path / "a", 0, lambda i: True)
    links = link(tmp_path / "o", tmp_path / "a", None)
    trial = load(tmp_path / "o", tmp_path / "a", links, detector=Fixed())
    plan = Plan(["oa", "ao", "set-averaging"], ["geometry", "consistency", "distance"])
    result = evaluate(trial, [DlibEmbedder()], plan)
    assert {o.attack for o in result.attacks} >= {"oo", "oa"}
    assert build(trial, result)["schema"] == 1


def test_releases_with_other_gaps_play_the_same_parts(tmp_path: Path) -> None:
    drawn(tmp_path / "o", 0)
    drawn(tmp_path / "a", 0)
    drawn(tmp_path / "b", 0)
    shutil.rmtree(tmp_path / "b" / "person3")
    (tmp_path / "b" / "person5" / "2.png").unlink()
    links = link(tmp_path / "o", tmp_path / "a", None)
    first = load(tmp_path / "o", tmp_path / "a", links, detector=Fixed())
    links = link(tmp_path / "o", tmp_path / "b", None)
    second = load(tmp_path / "o", tmp_path / "b", links, detector=Fixed(), like=first.chosen)
    assert first.chosen == second.chosen
    assert first.names == second.names


def test_outputs_that_still_show_the_face_are_counted(crowd: Trial, people: Path) -> None:
    from anonymize.eval.utility import unchanged

    assert unchanged(crowd) == 0
    same = load(people, people, link(people, people, None))
    assert unchanged(same) == len(same.a.paths)
    broken = verdict([], 3)
    assert broken["level"] == "broken"
    assert "3 outputs" in broken["text"]


def test_a_success_counts_even_where_the_recogniser_is_weak() -> None:
    from anonymize.eval.stats import Estimate

    weak = replace(outcomes(staged(embeddings(), embeddings()))["oo"], rank1=Estimate(0.2, 0, 1, 9))
    bound = Estimate(0.9, 0.8, 1.0, 100)
    row = Outcome("context", "thumbnail", "fake", bound, None, 0.01, bound, bound)
    found = judged([weak, row])
    assert "beyond the control" in found[1].verdict
    assert verdict(found)["level"] == "broken"


ALL = (*NAIVE, attacks.control)


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.__name__)
def test_every_number_is_computed_from_the_pictures(attack: Attack) -> None:
    """No score is hard-coded: other outputs give others, and equal ones the same."""
    o = embeddings()
    rng = np.random.default_rng(5)
    made = [o + share * 4 * rng.normal(size=o.shape).astype(np.float32) for share in (0.1, 0.5, 1)]
    seen = [[measure(search) for search in attack(staged(o, a), FAKE)] for a in made]
    again = [measure(search) for search in attack(staged(o, made[1]), FAKE)]
    for first, second, third, same in zip(*seen, again, strict=True):
        assert same == second
        for number in ("roc", "histogram", "eer", "d_sys"):
            values = [getattr(outcome, number) for outcome in (first, second, third)]
            assert values[0] != values[1] != values[2], number
