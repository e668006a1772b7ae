"""Explaining and harnessing adversarial examples: the fast gradient sign method.

Ian J. Goodfellow, Jonathon Shlens, Christian Szegedy. ICLR 2015. arXiv 1412.6572.

One gradient step in the sign of the input gradient makes most classifiers wrong with confidence, because many tiny
aligned changes add up in high dimension: networks are too linear, not too curved. New were this explanation, the
one-step attack that follows from it, and training on such examples as a regulariser.

Claim: FGSM at 8/255 leaves an accuracy at least 60 points below that under random-sign noise of the same size.

    x' = clip(x + eps * sign(grad_x J(theta, x, y)))                                          (section 4)
    w . (x + eps sign(w)) = w . x + eps ||w||_1          grows with the dimension, ||eta||_inf does not
    E softplus(eps ||w||_1 - y (w . x + b)),  y in {-1, 1}       adversarial loss of logistic regression (section 5)
    J~ = a J(x, y) + (1 - a) J(x', y)                    adversarial training, a = 0.5 (section 6)

Differs from the paper:
- section 5 prints the logistic loss with y outside of the whole bracket, which is right for y = +1 only; here as above;
- adversarial training starts from a trained network, or with clean steps and a ramp of eps: from scratch batch-norm networks stay at chance;
- the perturbation is made in the same forward pass (batch statistics) that gives the clean gradient; attacks use eval mode;
- maxout and RBF networks are here as models to attack, without the paper's MNIST recipes (early stopping, 1600 units).

Shapes: B batch, K classes, C,H,W or D one input.
"""
