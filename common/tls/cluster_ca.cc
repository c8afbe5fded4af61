#include "common/tls/cluster_ca.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <vector>

#include "absl/strings/str_join.h"

namespace mt {
namespace {

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};
using KeyPtr = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
using CertificatePtr = std::unique_ptr<X509, Deleter<X509_free>>;
using BioPtr = std::unique_ptr<BIO, Deleter<BIO_free_all>>;

constexpr absl::Duration kAuthorityLifetime = absl::Hours(24 * 3650);
constexpr absl::Duration kCoordinatorLifetime = absl::Hours(24 * 365);
constexpr absl::Duration kClockSkew = absl::Minutes(10);  // a node's clock may be behind ours

absl::Status OpensslError(absl::string_view what) {
  char text[256] = "no reason given";
  if (const unsigned long code = ERR_get_error(); code != 0)
    ERR_error_string_n(code, text, sizeof(text));
  ERR_clear_error();
  return absl::InternalError(absl::StrCat("OpenSSL: ", what, ": ", text));
}

std::string Drain(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<size_t>(size));
}

BioPtr ReadBio(absl::string_view text) {
  return BioPtr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

absl::StatusOr<std::string> ToPem(X509* certificate) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr || PEM_write_bio_X509(bio.get(), certificate) != 1)
    return OpensslError("write certificate");
  return Drain(bio.get());
}

absl::StatusOr<std::string> ToPem(EVP_PKEY* key) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr ||
      PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return OpensslError("write key");
  }
  return Drain(bio.get());
}

absl::Status AddName(X509_NAME* name, const char* field, absl::string_view value) {
  if (X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8,
                                 reinterpret_cast<const unsigned char*>(value.data()),
                                 static_cast<int>(value.size()), -1, 0) != 1) {
    return OpensslError(absl::StrCat("set ", field, "=", value));
  }
  return absl::OkStatus();
}

absl::Status AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  std::unique_ptr<X509_EXTENSION, Deleter<X509_EXTENSION_free>> extension(
      X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1) {
    return OpensslError(absl::StrCat("add extension ", value));
  }
  return absl::OkStatus();
}

struct Request {
  std::string common_name;
  absl::Duration lifetime;
  std::vector<std::pair<int, std::string>> extensions;
};

// Signs with `issuer_key`; a null issuer makes a self-signed certificate.
absl::StatusOr<CertificatePtr> Sign(const Request& request, EVP_PKEY* key, X509* issuer,
                                    EVP_PKEY* issuer_key) {
  // RFC 5280: ub-common-name. Checked here because OpenSSL's own message does not name the value.
  if (request.common_name.size() > 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("certificate name \"", request.common_name,
                     "\" is longer than 64 characters; use a shorter node or user name"));
  }
  CertificatePtr certificate(X509_new());
  if (certificate == nullptr) return OpensslError("new certificate");
  X509* x = certificate.get();
  X509_set_version(x, X509_VERSION_3);
  unsigned char serial[16];
  if (RAND_bytes(serial, sizeof(serial)) != 1) return OpensslError("random serial");
  serial[0] &= 0x7f;  // positive
  std::unique_ptr<BIGNUM, Deleter<BN_free>> number(BN_bin2bn(serial, sizeof(serial), nullptr));
  if (number == nullptr || BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(x)) == nullptr) {
    return OpensslError("set serial");
  }
  X509_gmtime_adj(X509_getm_notBefore(x), -absl::ToInt64Seconds(kClockSkew));
  X509_gmtime_adj(X509_getm_notAfter(x), absl::ToInt64Seconds(request.lifetime));
  if (X509_set_pubkey(x, key) != 1) return OpensslError("set public key");
  X509_NAME* subject = X509_get_subject_name(x);
  MT_RETURN_IF_ERROR(AddName(subject, "O", "mt"));
  MT_RETURN_IF_ERROR(AddName(subject, "CN", request.common_name));
  if (issuer == nullptr) issuer = x;
  if (X509_set_issuer_name(x, X509_get_subject_name(issuer)) != 1)
    return OpensslError("set issuer");
  MT_RETURN_IF_ERROR(AddExtension(x, issuer, NID_subject_key_identifier, "hash"));
  for (const auto& [nid, value] : request.extensions)
    MT_RETURN_IF_ERROR(AddExtension(x, issuer, nid, value));
  if (X509_sign(x, issuer_key, EVP_sha256()) == 0) return OpensslError("sign");
  return certificate;
}

absl::StatusOr<KeyPtr> NewKey() {
  KeyPtr key(EVP_EC_gen("P-256"));
  if (key == nullptr) return OpensslError("make a P-256 key");
  return key;
}

class OpensslClusterCa : public ClusterCa {
 public:
  OpensslClusterCa(CertificatePtr certificate, KeyPtr key, std::string pem)
      : certificate_(std::move(certificate)), key_(std::move(key)), pem_(std::move(pem)) {}

  const std::string& certificate_pem() const override { return pem_; }

  absl::StatusOr<CertificateAndKey> IssueCoordinator(absl::string_view cluster) const override {
    return Issue(
        absl::StrCat("coordinator:", cluster), kCoordinatorLifetime,
        absl::StrCat("DNS:", kCoordinatorTargetName, ",DNS:localhost,IP:127.0.0.1,IP:::1"));
  }
  absl::StatusOr<CertificateAndKey> IssueNode(absl::string_view node,
                                              absl::Duration lifetime) const override {
    return Issue(absl::StrCat("node:", node), lifetime, absl::StrCat("DNS:", kWorkerTargetName));
  }
  absl::StatusOr<CertificateAndKey> IssueClient(absl::string_view user, Role role,
                                                absl::Duration lifetime) const override {
    return Issue(absl::StrCat(RoleName(role), ":", user), lifetime, "");
  }

 private:
  // Without `names` it is a client's certificate: nobody accepts it as a server.
  absl::StatusOr<CertificateAndKey> Issue(std::string common_name, absl::Duration lifetime,
                                          const std::string& names) const {
    MT_ASSIGN_OR_RETURN(KeyPtr key, NewKey());
    Request request{std::move(common_name), lifetime, {}};
    request.extensions = {
        {NID_basic_constraints, "critical,CA:FALSE"},
        {NID_key_usage, "critical,digitalSignature"},
        {NID_ext_key_usage, names.empty() ? "clientAuth" : "serverAuth,clientAuth"},
        {NID_authority_key_identifier, "keyid:always"}};
    if (!names.empty()) request.extensions.emplace_back(NID_subject_alt_name, names);
    MT_ASSIGN_OR_RETURN(CertificatePtr certificate,
                        Sign(request, key.get(), certificate_.get(), key_.get()));
    CertificateAndKey pair;
    MT_ASSIGN_OR_RETURN(pair.certificate_pem, ToPem(certificate.get()));
    MT_ASSIGN_OR_RETURN(pair.key_pem, ToPem(key.get()));
    return pair;
  }

  CertificatePtr certificate_;
  KeyPtr key_;
  std::string pem_;
};

absl::Status MakeAuthority(Env* env, const std::string& folder) {
  MT_ASSIGN_OR_RETURN(KeyPtr key, NewKey());
  Request request{"mt cluster authority", kAuthorityLifetime, {}};
  request.extensions = {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                        {NID_key_usage, "critical,keyCertSign,cRLSign"}};
  MT_ASSIGN_OR_RETURN(CertificatePtr certificate, Sign(request, key.get(), nullptr, key.get()));
  CertificateAndKey pair;
  MT_ASSIGN_OR_RETURN(pair.certificate_pem, ToPem(certificate.get()));
  MT_ASSIGN_OR_RETURN(pair.key_pem, ToPem(key.get()));
  return WriteCertificate(env, folder, "ca", pair);
}

CertificatePtr ParseCertificate(absl::string_view pem) {
  return CertificatePtr(PEM_read_bio_X509(ReadBio(pem).get(), nullptr, nullptr, nullptr));
}

}  // namespace

absl::string_view RoleName(Role role) {
  switch (role) {
    case Role::kViewer:
      return "viewer";
    case Role::kSubmitter:
      return "submitter";
    case Role::kOperator:
      return "operator";
  }
  return "viewer";
}

absl::StatusOr<Role> ParseRole(absl::string_view name) {
  for (const Role role : {Role::kViewer, Role::kSubmitter, Role::kOperator}) {
    if (name == RoleName(role)) return role;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "role \"", name, "\" does not exist; the roles are viewer, submitter and operator"));
}

absl::Status WriteCertificate(Env* env, const std::string& folder, absl::string_view name,
                              const CertificateAndKey& pair) {
  MT_RETURN_IF_ERROR(env->CreateDirectories(folder));
  // The certificate comes last: whoever sees it finds its key.
  MT_RETURN_IF_ERROR(
      WriteFileAtomically(env, JoinPath(folder, absl::StrCat(name, ".key")), pair.key_pem));
  return WriteFileAtomically(env, JoinPath(folder, absl::StrCat(name, ".crt")),
                             pair.certificate_pem);
}

absl::StatusOr<absl::Time> CertificateExpiry(absl::string_view certificate_pem) {
  CertificatePtr certificate = ParseCertificate(certificate_pem);
  tm expiry = {};
  if (certificate == nullptr ||
      ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &expiry) != 1) {
    ERR_clear_error();
    return absl::InvalidArgumentError("not a PEM certificate");
  }
  return absl::FromTM(expiry, absl::UTCTimeZone());
}

absl::StatusOr<std::unique_ptr<ClusterCa>> ClusterCa::LoadOrCreate(Env* env,
                                                                   const std::string& folder) {
  MT_RETURN_IF_ERROR(env->CreateDirectories(folder));
  const std::string certificate_path = JoinPath(folder, "ca.crt");
  const std::string key_path = JoinPath(folder, "ca.key");
  // WriteCertificate writes the key first: a key alone is a creation that a crash cut short, and
  // nobody trusts it yet.
  if (!Exists(env, certificate_path)) MT_RETURN_IF_ERROR(MakeAuthority(env, folder));
  if (!Exists(env, key_path)) {
    return absl::FailedPreconditionError(
        absl::StrCat(certificate_path, " is there but ", key_path,
                     " is not: restore the key, or remove the folder to make a new authority "
                     "(every certificate of "
                     "this cluster then becomes void)"));
  }
  struct stat info = {};
  if (stat(key_path.c_str(), &info) == 0 && (info.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(key_path, " can be read by others; make it private: chmod 600 ", key_path));
  }
  MT_ASSIGN_OR_RETURN(std::string certificate_pem, ReadFile(env, certificate_path, 1 << 20));
  MT_ASSIGN_OR_RETURN(const std::string key_pem, ReadFile(env, key_path, 1 << 20));
  CertificatePtr certificate = ParseCertificate(certificate_pem);
  KeyPtr key(PEM_read_bio_PrivateKey(ReadBio(key_pem).get(), nullptr, nullptr, nullptr));
  if (certificate == nullptr || key == nullptr ||
      X509_check_private_key(certificate.get(), key.get()) != 1) {
    ERR_clear_error();
    return absl::InvalidArgumentError(
        absl::StrCat(certificate_path, " and ", key_path,
                     " are not a certificate and its key; restore them from a copy, or "
                     "remove the folder to make a new authority"));
  }
  return std::make_unique<OpensslClusterCa>(std::move(certificate), std::move(key),
                                            std::move(certificate_pem));
}

}  // namespace mt
