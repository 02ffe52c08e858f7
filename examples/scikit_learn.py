"""What a fitted pipeline of scikit-learn answers to: gradients of a logistic regression and of an RBF machine."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import flowgrad as fg

X = np.random.default_rng(0).standard_normal((200, 3))
labels = (X[:, 0] + X[:, 1] ** 2 > 0.5).astype(int)
for estimator in (LogisticRegression(), SVC(kernel="rbf")):
    model = fg.from_sklearn(make_pipeline(StandardScaler(), estimator).fit(X, labels))
    name = model.outputs[-1].name
    saliency = fg.explain.Saliency(model, output=name).attribute(X[:50], 1)
    print(type(estimator).__name__, "mean slope by feature:", np.round(saliency.mean(0).astype(float), 3).tolist())
