"""Generative Adversarial Networks, deep convolutional, semi-supervised.

Ian Goodfellow et al. NIPS 2014. arXiv 1406.2661. Alec Radford, Luke Metz, Soumith Chintala. ICLR 2016. arXiv
1511.06434. Tim Salimans et al. NIPS 2016. arXiv 1606.03498.

A generator learns to make samples that a discriminator cannot tell from data, while the discriminator learns to tell.
Here are the game of 2014, the all-convolutional nets that made it work on pictures and their latent arithmetic,
and the techniques of 2016: feature matching, minibatch discrimination, historical averaging, one-sided label
smoothing, virtual batch norm, and a discriminator with K class logits that learns from unlabelled pictures beside
a handful of labelled ones.

Claim: with 2 labels per class on 8x8 digits, a classifier that also plays the feature-matching game on the unlabelled
digits is at least 3 points more accurate than the same net trained on the labels only.

    min_G max_D  E log D(x) + E log(1 - D(G(z)))
    D*           = p / (p + q),   value at D* = -log 4 + 2 JSD(p, q)
    K classes    D(x) = Z / (Z + 1),  Z = sum_k exp(l_k)
    loss_D       = CE(l(x), y) - E log D(x_unlabelled) / 2 - E log(1 - D(G(z))) / 2
    loss_G       = || E f(x) - E f(G(z)) ||^2                   f: last hidden layer of D (feature matching)
                 or E sp(-l(G(z))) (ns), or -E sp(l(G(z))) (minimax), sp(t) = log(1 + e^t)

Differs from the paper:
- the claim uses scikit-learn's digits and 3,600 updates, not MNIST and 1,200 epochs
- the 2014 nets' learning rates and decay are from memory of their released configuration
- filter removal regresses on boxes known from the faces world (paper: boxes drawn by hand)
- feature matching reuses the discriminator step's unlabelled batch (released code: a second one)

Shapes: B batch, Z latent, C H W an image, K classes, F features.
"""
