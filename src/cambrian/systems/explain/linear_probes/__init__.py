"""Understanding intermediate layers using linear classifier probes.

Guillaume Alain, Yoshua Bengio. ICLR 2017 workshop. arXiv 1610.01644.

Fits an independent linear classifier on every layer of a network, without touching it, and shows where the class
becomes linearly readable. New was to use such probes as a thermometer: for depth, for training time, and for
finding parts of a network that are bypassed.

Claim: probe error falls with depth in a trained network, and its middle layer is at least 10 points better than
that of the untrained one.

    f_k(h) = softmax(W_k h_k + b_k)        each convex, on h_k = reduce(layer k), gradient stopped           (section 3.2)
    ridge: W = (G + lambda I)^-1 C,        G = cov(h), C = cov(h, onehot(y)), h standardised on the training split

Differs from the paper:
- probes of a trained network are solved in closed form (ridge on one-hot labels, or logistic by L-BFGS) instead of by SGD;
- "pool" averages to a small grid instead of one value per channel, as far as `limit` features allow; random subsets and projections are options.

Shapes: B batch, D features of a layer after reduction, K classes, L ridge strengths.
"""
