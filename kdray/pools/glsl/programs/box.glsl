// A rounded box that turns.
float solid(vec3 q) {
    vec3 d = abs(q) - vec3(between(0, 0.3, 0.8), between(1, 0.3, 0.8), between(2, 0.3, 0.8));
    return length(max(d, 0.0)) + min(max(d.x, max(d.y, d.z)), 0.0) - between(3, 0.02, 0.2);
}

mat3 pose() {
    float a = iTime * 0.7 + TAU * random(4), b = 0.5 * iTime + TAU * random(5);
    return mat3(cos(a), 0, sin(a), 0, 1, 0, -sin(a), 0, cos(a)) * mat3(1, 0, 0, 0, cos(b), sin(b), 0, -sin(b),
        cos(b));
}

void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at);
    mat3 turned = pose();
    vec3 eye = turned * vec3(0, 0, -3), ray = turned * normalize(vec3(p, between(6, 1.6, 2.6)));
    float far = 0.0, step_ = 1.0;
    for (int k = 0; k < 24 && step_ > 0.005 && far < 6.0; k++) {
        step_ = solid(eye + ray * far);
        far += step_;
    }
    vec3 hit = eye + ray * far;
    vec2 e = vec2(0.02, 0);
    vec3 normal = normalize(vec3(solid(hit + e.xyy) - solid(hit - e.xyy),
        solid(hit + e.yxy) - solid(hit - e.yxy), solid(hit + e.yyx) - solid(hit - e.yyx)));
    vec3 side = abs(normal);
    vec3 own = side.x > max(side.y, side.z) ? ink(7) : side.y > side.z ? ink(8) : ink(9);
    vec3 seen = normal * turned;
    seen.z = -seen.z;
    vec3 ground = mix(ink(10), ink(11), 0.5 + 0.5 * dot(p, vec2(cos(TAU * random(12)), sin(TAU * random(12)))));
    colour = vec4(far < 6.0 ? own * lit(seen) : ground, 1);
}
