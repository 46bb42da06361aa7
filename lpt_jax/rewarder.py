"""What texts earn in a run: they rank its catalogue, are read beside what was shown, and the best of several is chosen by that."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from lpt_jax import devices, ranking, rewards, text_audit
from lpt_jax.generation import GREEDY, Draws
from lpt_jax.recommender import ProfileRecommender


@dataclasses.dataclass
class Earned:
    """What profiles earned: the reward's parts and their sum "metric", each [B, G], which of them count [B, G], their
    targets' ranks [B, G, M]."""

    parts: dict[str, jax.Array]
    valid: np.ndarray
    ranks: np.ndarray

    @property
    def value(self) -> jax.Array:
        """The sum."""
        return self.parts["metric"]


class Rewarder:
    """Gives profiles of sessions what a sum of rewards.PARTS says, by the ranks that an embedder's weights give."""

    def __init__(self, r: ProfileRecommender, embedder: dict, reward: str, keep: bool = False):
        """keep: the catalogue's embeddings are kept in the workdir, or read from there (Embedder.catalogue)."""
        self.r, self.embedder, self.reward, self.keep = r, embedder, reward, keep

    @functools.cached_property
    def items(self) -> jax.Array:
        """The catalogue by the embedder, without what the residuals phase learned: a text is to rank by what it says."""
        return self.r.catalogue(self.embedder, self.keep)

    def __call__(
        self, texts: list[list[str]], users: list, longest: int = 0, ended=None, blind: bool = False
    ) -> Earned:
        """What G texts of each user earn by the ranks that they give the user's targets in the whole catalogue.

        longest: the padded length of the histories, 0: of these. ended: Bool [B, G], the model ended them (None: all). blind: as
        if there were no targets.
        """
        r, samples, read = self.r, len(texts[0]), rewards.reads(self.reward)
        width = max(r.config.data.targets, r.config.data.eval_targets)
        shape = (len(users), samples, width)
        embedded, valid = r.queries(self.embedder, sum(texts, []))
        targets = ranking.padded([() if blind else u.targets for u in users], width)
        hidden = ranking.padded([u.hidden for u in users], longest)
        ranks = np.zeros(shape, np.int32) if blind else self.ranks(embedded, targets, hidden)
        near = np.zeros(shape, np.float32)
        if "similarities" in read:
            cosines = ranking.score(devices.split_batch(embedded, r.run.mesh), self.items).reshape(*shape[:2], -1)
            temperature = r.config.contrastive.temperature
            near = devices.fetch(rewards.target_similarity(cosines, targets, hidden, temperature, r.run.count))
        ended = np.ones(shape[:2], bool) if ended is None else np.asarray(ended)
        rollout = rewards.Rollout(ranks, near, texts, r.run.count, ended, by_line=r.by_journey)
        if "texts" in read:
            rollout = rollout._replace(**self.shown(users))
        if "history" in read:
            ranked = {name: self.ranks(embedded, *rows) for name, rows in self.histories(users).items()}
            rollout = rollout._replace(**ranked)
        return Earned(rewards.earned(self.reward, rollout), valid.reshape(shape[:2]), ranks)

    def ranks(self, embedded: np.ndarray, targets: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Ranks Int[B, G, M] of each user's targets [B, M] by G embedded profiles of each, without the hidden items [B, H]."""
        samples = len(embedded) // len(targets)
        rows = embedded, np.repeat(targets, samples, 0), np.repeat(hidden, samples, 0)
        put = devices.split_batch(rows, self.r.run.mesh)
        found = ranking.target_ranks(put[0], self.items, put[1], put[2], self.r.run.count)
        return devices.fetch(found).reshape(len(targets), samples, -1)

    def histories(self, users: list) -> dict[str, tuple]:
        """The items that prompts showed, and as many from before them that they left out, as targets beside which none is hidden."""
        last, shown = self.r.config.prompt.history_items, [self.r.shown(user) for user in users]
        unseen = [[i for i in u.history if i not in of_user][-last:] for u, of_user in zip(users, shown, strict=True)]
        width, nothing = -(-max(map(len, shown)) // last) * last or last, np.full((len(users), 1), -1)
        return {
            "shown_ranks": (ranking.padded(shown, width), nothing),
            "unseen_ranks": (ranking.padded(unseen, last), nothing),
        }

    def shown(self, users: list) -> dict:
        """What the users' prompts showed, as a Rollout has it."""
        catalogue, histories = self.r.data.catalogue, []
        for user in users:
            rated = dict(zip(user.history, user.ratings or [None] * len(user.history), strict=True))
            histories.append([catalogue.fields[item] | {"rating": rated[item]} for item in self.r.shown(user)])
        return {
            "histories": histories,
            "shown": [text_audit.shown(self.r.shown(user), catalogue) for user in users],
            "names": text_audit.attribute_pattern(catalogue.attributes.names),
        }

    def chooser(self, sessions: list, longest: int = 0, blind: bool = False) -> Callable:
        """What chooses the best of several texts (generation.Draws) of sessions, by their numbers; the first where none counts."""
        longest = max(longest, ranking.padded([session.hidden for session in sessions]).shape[1])

        def choose(rows, texts: list[list[str]], ended: np.ndarray) -> np.ndarray:
            texts = [[self.r.line(text) for text in of_row] for of_row in texts]
            earned = self(texts, [sessions[row] for row in rows], longest, ended, blind)
            return np.where(earned.valid, devices.fetch(earned.value), -np.inf).argmax(1)

        return choose


class BestOf(Rewarder):
    """Chooses the profiles that are handed out, as config.profile says, by an embedder's weights."""

    def __init__(self, r: ProfileRecommender, embedder: dict):
        super().__init__(r, embedder, r.config.profile.best_by, keep=True)

    def draws(self, sessions: list, longest: int = 0) -> Draws:
        """How the sessions' profiles are drawn, and the best chosen: that of journeys line by line. Next items are not read."""
        r, settings = self.r, self.r.config.profile
        if settings.samples == 1:
            return GREEDY
        parts = [part for session in sessions for part in r.parts(session)]
        ways = devices.ways(r.run.mesh)
        at_once = max(min(settings.batch // settings.samples, len(parts)) // ways, 1) * ways
        return Draws(settings.temperature, settings.samples, self.chooser(parts, longest, blind=True), at_once)
