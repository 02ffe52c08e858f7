"""Slopes of fitted pipelines of scikit-learn beside their formulas; a forest has none."""

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline as pipe
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import flowgrad as fg

X = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
labels = (X[:, 0] + X[:, 1] ** 2 > 0.5).astype(int)
regression, machine = (pipe(StandardScaler(), e).fit(X, labels) for e in (LogisticRegression(), SVC(gamma=0.5)))
share, z, svc = regression.predict_proba(X)[:, 1:], machine[0].transform(X)[:, None], machine[1]
kernel = svc.dual_coef_ * np.exp(-0.5 * ((z - svc.support_vectors_) ** 2).sum(2))
away = np.einsum("ns,nsf->nf", kernel, z - svc.support_vectors_)  # the second score of an SVC is less its decision function
for pipeline, slopes in ((regression, share * (1 - share) * regression[1].coef_), (machine, away)):
    found = fg.explain.Saliency(fg.from_sklearn(pipeline)).attribute(X, 1, absolute=False)
    print(f"{type(pipeline[1]).__name__}: {np.abs(found - slopes / pipeline[0].scale_).max():.0e} from the formula")
try:
    fg.explain.Saliency(fg.from_sklearn(RandomForestClassifier(9).fit(X, labels))).attribute(X, 1)
except fg.FlowgradError as refusal:
    print("RandomForestClassifier:", refusal)
