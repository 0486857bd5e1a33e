"""k-means by hand and by what holds for any points."""

import itertools

import torch

from edgekit.passes.vq.kmeans import kmeans


def error(points: torch.Tensor, found: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float((points - found[0][found[1]]).double().square().sum())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_clusters_far_apart_are_found_exactly():
    centres = torch.cartesian_prod(*[torch.arange(4.0) * 100] * 2)
    points = centres.repeat_interleave(20, 0) + normal(320, 2)
    centroids, codes = kmeans(points, 16, 10, seed=0)
    groups = codes.reshape(16, 20)
    assert (groups == groups[:, :1]).all() and len(groups[:, 0].unique()) == 16
    assert torch.allclose(centroids[groups[:, 0]], points.reshape(16, 20, 2).mean(1), atol=1e-4)


def test_as_many_centroids_as_points_lose_nothing():
    points = normal(50, 4)
    assert error(points, kmeans(points, 50, 5, seed=0)) < 1e-9
    assert error(torch.ones(8, 2), kmeans(torch.ones(8, 2), 3, 5, seed=0)) == 0, "fewer different points than centroids"


def test_the_error_never_rises_and_a_seed_gives_the_same():
    points, far = normal(3000, 4), 100 + normal(32, 4)
    for start in (None, far):  # all the points are nearest to one of those far away
        errors = [error(points, kmeans(points, 32, n, seed=1, start=start)) for n in range(1, 12)]
        assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors))
    assert errors[-1] < error(points, (points.mean(0, keepdim=True), torch.zeros(3000, dtype=torch.int64))) / 2
    left, right, other = (kmeans(points, 32, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(left[0], right[0]) and torch.equal(left[1], right[1]) and not torch.equal(left[0], other[0])


def test_a_centroid_without_points_takes_the_one_served_worst():
    points = torch.tensor([[0.0], [0.1], [10.0]])
    centroids, codes = kmeans(points, 2, 5, seed=0, start=torch.tensor([[0.0], [1000.0]]))
    assert torch.allclose(centroids, torch.tensor([[0.05], [10.0]])) and codes.tolist() == [0, 0, 1]


def test_weights_are_repetitions():
    points, times = normal(200, 3), torch.randint(1, 5, (200,), generator=torch.Generator().manual_seed(0))
    start = points[:8]
    weighed = kmeans(points, 8, 20, seed=0, weights=times.float(), start=start)
    repeated = kmeans(points.repeat_interleave(times, 0), 8, 20, seed=0, start=start)
    assert torch.allclose(weighed[0], repeated[0], atol=1e-5)
    assert torch.equal(weighed[1].repeat_interleave(times), repeated[1])


def test_noise_has_faded_at_the_end():
    points = normal(4000, 4)
    assert torch.allclose(kmeans(points, 1, 7, seed=0, anneal=True)[0][0], points.mean(0), atol=1e-6)
    plain, annealed = (kmeans(points, 64, 30, seed=0, anneal=anneal) for anneal in (False, True))
    assert not torch.equal(plain[1], annealed[1]) and error(points, annealed) < 1.02 * error(points, plain)
