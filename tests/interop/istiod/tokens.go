package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	review "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/testing"

	"istio.io/istio/pkg/config/schema/gvr"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/security/pkg/k8s/tokenreview"
)

const (
	defaultAudience = "istio-ca"
	defaultLifetime = time.Hour
)

// The API server's half of service account tokens: issues them for pods and judges them in a TokenReview. A token is its claims and a
// seal over them, so it is still good after a restart.
type tokens struct {
	key []byte
}

type claims struct {
	Namespace, ServiceAccount, Pod, UID, Audience string
	Expires                                       time.Time
}

func openTokens(dir string) (*tokens, error) {
	path := filepath.Join(dir, "token-key")
	key, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		key = make([]byte, sha256.Size)
		rand.Read(key)
		err = os.WriteFile(path, key, 0o600)
	}
	return &tokens{key}, err
}

func (t *tokens) seal(body string) string {
	h := hmac.New(sha256.New, t.key)
	h.Write([]byte(body))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// TokenRequest: NAMESPACE/POD [AUDIENCE [SECONDS]].
func (t *tokens) issue(client kube.Client, args []string) (string, error) {
	if len(args) < 1 || len(args) > 3 {
		return "", errors.New("token NAMESPACE/POD [AUDIENCE [SECONDS]]")
	}
	namespace, name, _ := strings.Cut(args[0], "/")
	pod, err := client.Kube().CoreV1().Pods(namespace).Get(context.Background(), name, meta.GetOptions{})
	if err != nil {
		return "", err
	}
	c := claims{namespace, pod.Spec.ServiceAccountName, name, string(pod.UID), defaultAudience, time.Now().Add(defaultLifetime)}
	if len(args) > 1 {
		c.Audience = args[1]
	}
	if len(args) > 2 {
		seconds, err := strconv.Atoi(args[2])
		if err != nil {
			return "", err
		}
		c.Expires = time.Now().Add(time.Duration(seconds) * time.Second)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	body := base64.RawURLEncoding.EncodeToString(text)
	return body + "." + t.seal(body), nil
}

func (t *tokens) open(token string, audiences []string) (c claims, err error) {
	body, seal, _ := strings.Cut(token, ".")
	if !hmac.Equal([]byte(seal), []byte(t.seal(body))) {
		return c, errors.New("the token was not issued here")
	}
	text, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		return c, err
	}
	if err = json.Unmarshal(text, &c); err != nil {
		return c, err
	}
	if time.Now().After(c.Expires) {
		return c, errors.New("the token has expired")
	}
	if !slices.Contains(audiences, c.Audience) {
		return c, fmt.Errorf("the token is for %q, not for %q", c.Audience, audiences)
	}
	return c, nil
}

// Makes the client answer TokenReviews.
func (t *tokens) reviewFor(client kube.Client) {
	api := client.Kube().(*fake.Clientset)
	api.PrependReactor("create", "tokenreviews", func(action testing.Action) (bool, runtime.Object, error) {
		asked := action.(testing.CreateAction).GetObject().(*review.TokenReview).DeepCopy()
		c, err := t.open(asked.Spec.Token, asked.Spec.Audiences)
		if err == nil { // a token dies with its pod; the client itself is locked here
			pod, gone := api.Tracker().Get(gvr.Pod, c.Namespace, c.Pod)
			if gone != nil || string(pod.(*core.Pod).UID) != c.UID {
				err = errors.New("the token's pod is gone")
			}
		}
		if err != nil {
			asked.Status = review.TokenReviewStatus{Error: err.Error()}
			return true, asked, nil
		}
		asked.Status = review.TokenReviewStatus{
			Authenticated: true,
			Audiences:     []string{c.Audience},
			User: review.UserInfo{
				Username: "system:serviceaccount:" + c.Namespace + ":" + c.ServiceAccount,
				Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + c.Namespace, "system:authenticated"},
				Extra:    map[string]review.ExtraValue{tokenreview.PodNameKey: {c.Pod}, tokenreview.PodUIDKey: {c.UID}},
			},
		}
		return true, asked, nil
	})
}
