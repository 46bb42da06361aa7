"""Another system's run on our split: names of queries, several sessions and targets, and what is told of it."""

import json

import numpy as np
import pytest

from lpt_jax import evaluate, metrics, ranking, trec
from lpt_jax.baselines import simple
from lpt_jax.config import default, finish, tiny
from lpt_jax.data import sessions
from lpt_jax.run import used_sessions


def test_a_run_by_popularity_scores_as_popularity(tmp_path, capsys):
    config = tiny(default())
    config.data.update(eval_windows=2, eval_targets=2)
    config = finish(config)
    data = sessions.prepare(config.data)
    found = used_sessions(data, config.evaluation)["test"]
    assert len({s.user for s in found}) < len(found) and max(len(s.targets) for s in found) == 2
    scores = dict(zip(data.catalogue.ids, data.popularity.tolist()))  # with ties, and each history's own items
    lines = [f"{query} Q0 {item} 0 {score} other" for query in trec.queries(found) for item, score in scores.items()]
    (tmp_path / "pop.run").write_text("\n".join(lines))
    result = evaluate.score_run(config, tmp_path, str(tmp_path / "pop.run"))
    ranks = ranking.session_ranks(*simple.popularity(found, data.popularity), found)
    _, values = metrics.per_user(ranks, [s.user for s in found])
    assert result["row"] == pytest.approx(metrics.table_row(values)) and "gain" not in result
    passed = sum(len(s.history) for s in found)
    assert {what: n for what, n in result["counts"].items() if n} == {"items of the history": passed}
    assert json.loads((tmp_path / "trec/pop.run.json").read_text())["row"]["ndcg"] == result["row"]["ndcg"]
    shown = capsys.readouterr().out
    assert "run pop.run" in shown and f"pop.run: {passed} items of the history" in shown
    assert np.isfinite([*result["row"].values()]).all()


def test_the_gain_of_a_run_that_lists_only_the_best_is_at_a_cut_off(tmp_path, capsys):
    """Over the whole ranking the very same system would lose to itself, as what isn't listed ranks last."""
    config = finish(tiny(default()))
    data = sessions.prepare(config.data)
    found = used_sessions(data, config.evaluation)["test"]
    ranks = ranking.session_ranks(*simple.popularity(found, data.popularity), found)
    _, values = metrics.per_user(ranks, [s.user for s in found])
    np.savez(tmp_path / "per_user.npz", **{f"cl/{name}": of_users for name, of_users in values.items()})
    tested = {"rows": {"cl": metrics.table_row(values)}, "gains": {"zero_shot->cl": {}}}
    (tmp_path / "results.json").write_text(json.dumps(tested))
    best = ranking.session_best(*simple.popularity(found, data.popularity), found, 1000)
    ids = np.array(data.catalogue.ids, object)
    for depth, metric in ((1000, "ndcg"), (10, "ndcg@10")):
        listed = [ids[row[row >= 0][:depth]] for row in best]
        trec.write_run(tmp_path / "pop.run", trec.queries(found), listed)
        gain = evaluate.score_run(config, tmp_path, str(tmp_path / "pop.run"))["gain"]
        assert (gain["over"], gain["metric"]) == ("cl", metric)
        assert gain["mean"] == gain["low"] == gain["high"] == 0.0
    assert "targets not listed, ranked last" in capsys.readouterr().out
