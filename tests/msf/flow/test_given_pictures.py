import torch


def test_pictures_that_require_gradients_are_classified_as_others_are(make_flow):
    flow = make_flow(code="simplex")
    pictures = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = flow.classify(pictures, 4)
    given = flow.classify(pictures.clone().requires_grad_(), 4)
    assert torch.equal(given.class_distance, wanted.class_distance)
    assert not given.probability.requires_grad
