"""Adversarial examples in the physical world: which attacks survive print and camera.

Alexey Kurakin, Ian J. Goodfellow, Samy Bengio. ICLR 2017 workshop. arXiv 1607.02533.

Adversarial pictures were printed, photographed and cut out again, and many still fooled the network. New were the two
iterative attacks in general use since (basic iterative, and towards the least likely class), the destruction rate that
compares attacks, and the finding that the stronger attack on the screen is the weaker one on paper. Here a procedural
printer and camera take the place of the paper's, so that anybody can repeat it; real photographs can be scored too.

Claim: photographs destroy at least 10 points more of the least-likely-class attacks than of one-step attacks at 8/255.

    X_0 = X,  X_{n+1} = Clip_{X,eps}( X_n + alpha sign(grad J(X_n, y_true)) )                (basic iterative, section 2.2)
    X_{n+1} = Clip_{X,eps}( X_n - alpha sign(grad J(X_n, y_LL)) ),  y_LL = argmin_y p(y | X)   (least likely, section 2.3)
    alpha = 1 grey level,  min(eps + 4, 1.25 eps) iterations, eps in grey levels
    d = sum C(X) (1 - C(X_adv)) C(T(X_adv)) / sum C(X) (1 - C(X_adv)),  C = 1 when classified correctly   (destruction rate)

Differs from the paper:
- printer, camera and crop are simulated (`cambrian.inspect.camera`); ring marks stand where the paper has QR codes;
- each picture has a sheet and a photograph of its own, the paper has many pictures on a page;
- small networks on 32-pixel characters instead of Inception v3 on ImageNet;
- gradients through the camera (attacks that know it) are an option that the paper has not.

Shapes: B batch, C H W one picture, K classes.
"""

from cambrian.systems.attack.physical_adversarial._sheets import Sheet, crop_photos, print_sheet
from cambrian.systems.attack.physical_adversarial.model import (
    LeastLikely,
    Moves,
    Rate,
    Survey,
    Through,
    bim,
    destruction_rate,
    illc,
    iterations,
    prefiltered,
    sweeps,
)
from cambrian.systems.attack.physical_adversarial.recipe import (
    CLAIM,
    Config,
    Options,
    PhysicalAdversarial,
    PhysicalAdversarialStudy,
)

__all__ = [
    "CLAIM",
    "Config",
    "LeastLikely",
    "Moves",
    "Options",
    "PhysicalAdversarial",
    "PhysicalAdversarialStudy",
    "Rate",
    "Sheet",
    "Survey",
    "Through",
    "bim",
    "crop_photos",
    "destruction_rate",
    "illc",
    "iterations",
    "prefiltered",
    "print_sheet",
    "sweeps",
]
